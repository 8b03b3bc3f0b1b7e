"""Newcomers' jobs on a clean environment: ``python tests/newcomer/run.py WHEEL [--work FOLDER] [--only NAME]``.

The wheel is installed into environments outside of the checkout; the big dependencies are borrowed by path from the one
that runs this, and for `onnx_only` all of them but PyTorch. Each job is a script that knows pydeploy's documentation only,
and runs in a folder of its own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
JOBS = {"onnx_only": "light", "unet_masks": "full", "image_folder": "full", "ci_regression": "full"}
"""Scripts, and the environment of each."""
TORCH = ("torch", "functorch", "nvidia", "triton", "accelerate", "timm", "segmentation_models")
"""How packages begin that the light environment lacks."""


def borrowed() -> list[Path]:
    """Where the packages of this environment lie; editable installs among them do not count."""
    return [Path(entry) for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]


def light(folder: Path) -> list[Path]:
    """Links to all packages but PyTorch and what needs it."""
    folder.mkdir()
    for place in borrowed():
        for entry in place.iterdir():
            name = entry.name.lower()
            if (
                not name.startswith((*TORCH, "pydeploy", "_"))
                and entry.suffix != ".pth"
                and not (folder / entry.name).exists()
            ):
                (folder / entry.name).symlink_to(entry)
    return [folder]


def environment(folder: Path, wheel: Path, packages: list[Path]) -> Path:
    """The interpreter of a new environment with the wheel and borrowed `packages`."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
    ]
    subprocess.run([*install, str(wheel)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text("".join(f"{place}\n" for place in packages))
    return python


def run(script: Path, python: Path, folder: Path) -> bool:
    """Run one job in a new folder; its output is shown where it fails."""
    folder.mkdir()
    began, env = time.monotonic(), {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run([python, script], cwd=folder, env=env, check=False, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)  # fmt: skip
    took = time.monotonic() - began
    last = done.stdout.strip().splitlines()[-1:] if done.returncode == 0 else done.stdout.splitlines()
    print(
        f"newcomer: {script.stem} {'done' if done.returncode == 0 else 'FAILED'} in {took:.0f} s",
        *last,
        sep="\n    ",
        flush=True,
    )
    return done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--work", type=Path, help="keep everything here, an empty or new folder")
    parser.add_argument("--only", choices=sorted(JOBS), action="append")
    given = parser.parse_args()
    work = given.work or Path(tempfile.mkdtemp(prefix="newcomer-"))
    work.mkdir(parents=True, exist_ok=True)
    try:
        jobs = {name: kind for name, kind in JOBS.items() if not given.only or name in given.only}
        packages = {"full": borrowed, "light": lambda: light(work / "packages")}
        pythons = {
            kind: environment(work / kind, given.wheel.resolve(), packages[kind]())
            for kind in sorted(set(jobs.values()))
        }
        results = [run(HERE / f"{name}.py", pythons[kind], work / name) for name, kind in jobs.items()]
    finally:
        if given.work is None:
            shutil.rmtree(work)
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
