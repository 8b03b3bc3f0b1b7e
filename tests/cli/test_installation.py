"""`doctor` notices another project's distribution over ours; runtimes write nothing outside and start no threads."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from pydeploy.cli.doctor import _installation


def installed(folder: Path, name: str, **files: str) -> PathDistribution:
    """A distribution in `folder` with `files` (package paths with '/' as '__') of which the record knows the hashes."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    rows = []
    for key, text in files.items():
        path = folder / "pydeploy" / f"{key}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        rows.append(f"pydeploy/{key}.py,sha256={digest},{len(text)}\n")
    (info / "RECORD").write_text("".join(rows))
    return PathDistribution(info)


def test_what_is_complete_is_said_to_be(tmp_path: Path) -> None:
    ours = installed(tmp_path, "pydeploy-hil", graph="x = 1\n", files="y = 2\n")
    assert _installation([ours]) == "pydeploy-hil, complete"
    assert _installation([]) == "not installed, run from its source"


@pytest.mark.parametrize("name", ["pydeploy", "PyDeploy"])
def test_a_foreign_distribution_of_the_name_is_warned_of(tmp_path: Path, name: str) -> None:
    found = _installation([installed(tmp_path / "a", "pydeploy-hil"), installed(tmp_path / "b", name)])
    assert found.startswith("WARNING: a distribution 'pydeploy' 1.0")
    assert "pip uninstall pydeploy, then pip install --force-reinstall --no-deps pydeploy-hil" in found


@pytest.mark.parametrize("damage", ["replaced", "removed"])
def test_files_that_something_wrote_over_are_found(tmp_path: Path, damage: str) -> None:
    ours = installed(tmp_path, "pydeploy-hil", graph="x = 1\n", files="y = 2\n")
    place = tmp_path / "pydeploy" / "files.py"
    place.unlink()
    if damage == "replaced":
        place.write_text("import somebody_elses")
    assert _installation([ours]).startswith("WARNING: pydeploy/files.py is not as it was installed (1 files")


RUN = """
import os, sys
import numpy as np
from pydeploy.backends.base import open_backend
from pydeploy.profiling.profile import random_feeds
backend = open_backend(sys.argv[1], threads=1)
engine = backend.build(sys.argv[2], "engine")
with backend.open(engine) as session:
    session.run(random_feeds(session.inputs))
    print(len(os.listdir("/proc/self/task")))
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted by /proc")
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_runtimes_write_nothing_outside_and_start_no_telemetry(tmp_path: Path, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino", reason="needs the package openvino: pip install 'pydeploy-hil[openvino]'")
    from onnx_nets import residual

    net, home, here = residual(tmp_path / "net.onnx"), tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    places = {
        name: str(home / name.lower()) for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "TMPDIR")
    }
    (home / "tmpdir").mkdir()
    kept = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    limits = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", RUN, backend, str(net)], cwd=here, capture_output=True, text=True,
                          check=False, env={**kept, **limits, **places, "HOME": str(home)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [path for path in home.rglob("*") if path.is_file()] == []
    assert {path.name.partition(".")[0] for path in here.iterdir()} == {"engine"}
    if backend == "onnxruntime":
        assert int(done.stdout) == 1, "a thread besides the one that computes"
