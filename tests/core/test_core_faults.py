"""The compiled core where memory and threads cannot be had: every single allocation and start of a thread fails once."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CORE = ("batch", "bins", "compress", "entries", "fold", "histogram", "mask", "resample", "sizes", "surgery", "threads")
SANITIZERS = os.environ.get("PYDEPLOY_SANITIZERS", "")
"""For the compiler, such as ``address,undefined``."""


def test_no_lack_of_memory_or_threads_ends_the_process_or_its_sense(tmp_path: Path) -> None:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler to build tests/core/faults.cpp with; set CXX")
    here, program = Path(__file__).parent, tmp_path / "faults"
    core = here.parents[1] / "csrc" / "core"
    sources = [here / "faults.cpp", *(core / f"{name}.cpp" for name in CORE)]
    flags = [f"-fsanitize={SANITIZERS}", "-g"] if SANITIZERS else []
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    command = [compiler, "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", *flags, f"-I{core.parent}", "-o",
               program, *sources, "-ldl"]  # fmt: skip
    subprocess.run(command, check=True, env=environment)
    environment["ASAN_OPTIONS"] = "detect_leaks=1"
    done = subprocess.run([program], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    tried = [line.split(": ")[1].split() for line in done.stdout.splitlines()]
    assert len(tried) == 12
    assert all(int(numbers[0]) > 3 for numbers in tried), "allocations were met"
    assert sum(int(numbers[2]) for numbers in tried) > 20, "starts of threads were met"
