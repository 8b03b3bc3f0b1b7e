"""The target side works on a board without torch; nothing heavy is imported before it is asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TARGET_SIDE = ["backends.base", "backends.null", "backends.onnxruntime", "backends.tensorrt.backend",
               "backends.tensorrt.checkup", "backends.tensorrt.trtexec", "timing.rounds", "profiling.compare_outputs",
               "latency.board", "latency.probes.measure", "latency.table.table", "profiling.profile", "quant.calibrate",
               "quant.qdq", "report", "planning.solve"]  # fmt: skip


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ}, timeout=120)


def test_target_side_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'accelerate'): sys.modules[name] = None\n"
        "import importlib\n"
        f"for name in {TARGET_SIDE!r}: importlib.import_module('pydeploy.' + name)\n"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_is_light() -> None:
    done = run_python(
        "import sys, pydeploy\nprint([m for m in ('torch', 'onnx', 'numpy', 'pydantic') if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nsys.argv = ['pydeploy', '--help']\nfrom pydeploy.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'numpy', 'pydantic', 'jinja2') if m in sys.modules])"
    )
    done = run_python(code)
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr


@pytest.mark.parametrize("name", __import__("pydeploy").__all__)
def test_public_names_exist(name: str) -> None:
    import pydeploy

    assert getattr(pydeploy, name) is not None


def test_unknown_name_is_an_attribute_error() -> None:
    import pydeploy

    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        _ = pydeploy.prun


def test_a_missing_compiled_part_explains_itself() -> None:
    code = "import sys\nsys.modules['pydeploy._core'] = None\nimport pydeploy\npydeploy.solve"
    done = run_python(code)
    assert "make setup" in done.stderr


def test_core_version_is_the_package_version() -> None:
    from pydeploy import _core
    from pydeploy.version import __version__

    assert _core.__version__ == __version__


def test_a_missing_runtime_says_what_to_install() -> None:
    code = (
        "import sys\nsys.modules['openvino'] = None\n"
        "from pydeploy.backends.base import open_backend\nopen_backend('openvino')"
    )
    done = run_python(code)
    assert "BackendUnavailable" in done.stderr
    assert "pip install 'pydeploy[openvino]'" in done.stderr


def test_package_data_is_there() -> None:
    import pydeploy

    root = Path(pydeploy.__file__).parent
    assert (root / "py.typed").exists()
    assert (root / "_core.pyi").exists()
