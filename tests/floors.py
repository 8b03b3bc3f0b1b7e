"""The lowest versions that pyproject.toml states, tried: ``make floors``.

A virtual environment with exactly these versions of the light dependencies (no PyTorch), the built wheel in it, and the tests
that need no PyTorch. Exit code 3: the packages cannot be had here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PLACE = ROOT / "build" / "floors"
PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")
TESTS = ("test_files.py", "guests/test_resolve.py", "cli/test_cli_light.py", "run/test_rundir.py",
         "report/test_report_page.py", "report/test_report_schema.py", "report/test_report_charts.py",
         "latency/test_latency_table.py", "latency/test_latency_probe.py", "latency/test_latency_foreign.py",
         "quant/test_quant_calibrate.py", "quant/test_quant_lint.py", "quant/test_quant_observe.py",
         "data/test_quant_images.py", "profiling/test_profile.py", "planning/test_solve.py", "planning/test_choose_precision.py",
         "report/test_predictions.py", "data/test_decode.py",
         "backends/test_backends.py", "backends/test_tensorrt_verbs.py", "backends/test_tensorrt_trtexec.py",
         "timing/test_timing.py")  # fmt: skip


def floors() -> list[str]:
    """``name==version`` of every dependency, at its floor."""
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    found = [re.fullmatch(r"([\w.-]+)>=([\d.]+)", text) for text in stated]
    assert all(found), f"a dependency without a floor among {stated}"
    return [f"{match[1]}=={match[2]}" for match in found if match]


def run(*command: object, **more: object) -> int:
    return subprocess.run([str(word) for word in command], cwd=PLACE, check=False, **more).returncode  # type: ignore[call-overload,no-any-return]


def main() -> int:
    python, wheel = PLACE / "venv" / "bin" / "python", PLACE / "wheel"
    venv.create(PLACE / "venv", with_pip=True, clear=True)
    # pytest is our tool, not a dependency; plugins of the surrounding environment stay out.
    if run(python, *PIP, "install", "--only-binary", ":all:", *floors(), "pytest", "hypothesis"):
        return 3
    build = ("wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", wheel, ROOT)
    path = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    if run(sys.executable, *PIP, *build, env=path) or run(python, *PIP, "install", "--no-deps", *wheel.glob("*.whl")):
        return 1
    for name in ("tests", "configs", "calib", "pyproject.toml"):
        link = PLACE / name
        link.unlink(missing_ok=True)
        link.symlink_to(ROOT / name)
    print("floors:", " ".join(floors()), flush=True)
    options = (
        "--quiet",
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=--import-mode=importlib",
        "-o",
        "filterwarnings=default",
        "--no-header",
    )
    return run(python, "-m", "pytest", *options, "--disable-warnings", *(f"tests/{name}" for name in TESTS))


if __name__ == "__main__":
    sys.exit(main())
