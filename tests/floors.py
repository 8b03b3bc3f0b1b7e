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
TESTS = ("files", "resolve", "cli_light", "rundir", "report_page", "report_schema", "report_charts", "latency_table",
         "latency_probe", "quant_calibrate", "quant_lint", "quant_observe", "latency_foreign", "quant_images", "profile", "solve",
         "backends", "tensorrt_verbs", "tensorrt_trtexec", "timing")  # fmt: skip


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
    return run(python, "-m", "pytest", *options, "--disable-warnings", *(f"tests/test_{name}.py" for name in TESTS))


if __name__ == "__main__":
    sys.exit(main())
