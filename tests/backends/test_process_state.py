"""Runtimes share the process with its user: they leave its state alone, and a Ctrl-C at any moment ends in Python."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import process_state
import struck
from onnx_nets import residual
from pydeploy.backends.base import open_backend

if sys.platform != "linux":
    pytest.skip("signal stacks and masks are read as Linux shows them", allow_module_level=True)

REAL = ["onnxruntime", pytest.param("openvino", marks=pytest.mark.openvino)]
PLUGIN = "openvino_intel_cpu_plugin"
"""What of OpenVINO is in memory once it has been used."""


def needs(name: str) -> None:
    if name == "openvino":
        pytest.importorskip("openvino", reason="needs the package openvino: pip install 'pydeploy-hil[openvino]'")


def script(module: object, *args: object, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *options, str(module.__file__), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("options", [(), ("-X", "faulthandler")], ids=["plain", "faulthandler"])
def test_a_runtime_leaves_the_process_as_it_was(name: str, options: tuple[str, ...], tmp_path: Path) -> None:
    needs(name)
    done = script(process_state, name, residual(tmp_path / "net.onnx"), tmp_path, options=options)
    assert done.returncode == 0, done.stderr
    changed = {row["use"]: row["changed"] for row in map(json.loads, done.stdout.splitlines())}
    assert len(changed) == 9
    assert not {use: found for use, found in changed.items() if found}


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("options", [(), ("-X", "faulthandler")], ids=["plain", "faulthandler"])
def test_ctrl_c_at_any_moment_of_any_use_is_an_exception(name: str, options: tuple[str, ...], tmp_path: Path) -> None:
    needs(name)
    done = script(struck, name, residual(tmp_path / "net.onnx"), tmp_path, random.randrange(10**6), options=options)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}"
    assert f"struck {10 * struck.EACH} times" in done.stdout


def pressed(victim: subprocess.Popen[str]) -> str:
    """What the command wrote after Ctrl-C. Python drops what is raised inside a finalizer: then a user presses again."""
    for _ in range(3):
        if victim.poll() is None:
            victim.send_signal(signal.SIGINT)
        try:
            return victim.communicate(timeout=30)[1]
        except subprocess.TimeoutExpired:
            continue
    victim.kill()
    return f"did not end: {victim.communicate()[1]}"


@pytest.mark.openvino
@pytest.mark.parametrize("attempt", range(2))
@pytest.mark.parametrize("command", ["build", "profile"])
def test_ctrl_c_ends_a_command_with_one_line(command: str, attempt: int, tmp_path: Path) -> None:
    needs("openvino")
    source, engine = residual(tmp_path / "net.onnx"), tmp_path / "net.engine"
    if command == "profile":
        open_backend("openvino", threads=1).build(source, engine)
        args = ["profile", str(engine), "--rounds", "100000"]
    else:
        args = ["build", str(source), "--target", "openvino:fp32", "--out", str(engine)]
    victim = subprocess.Popen([sys.executable, "-m", "pydeploy", *args], stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, text=True)  # fmt: skip
    maps = Path(f"/proc/{victim.pid}/maps")
    while victim.poll() is None and PLUGIN not in maps.read_text():
        time.sleep(0.002)
    time.sleep(random.uniform(0.0, 0.5 if command == "profile" else 0.05))
    errors = pressed(victim)
    assert "Traceback" not in errors
    assert victim.returncode in ((2,) if command == "profile" else (0, 2)), errors
    assert victim.returncode == 0 or "error: interrupted" in errors
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "nothing half-written"
