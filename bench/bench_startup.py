"""How long a user waits before anything happens: `import pydeploy` and `pydeploy --help`, beside an empty Python.

The time is that of the whole process; the user time of the fastest one, which other programs disturb least, is kept
as ``user_s`` beside it. Which modules are imported is held by ``tests/test_imports.py``.
"""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

COMMANDS = {
    "python": ["-c", "pass"],
    "import pydeploy": ["-c", "import pydeploy"],
    "pydeploy --help": ["-m", "pydeploy", "--help"],
}


@pytest.mark.benchmark(group="startup")
@pytest.mark.parametrize("name", COMMANDS)
def test_startup(benchmark: BenchmarkFixture, name: str) -> None:
    user_s: list[float] = []

    def start() -> None:
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        subprocess.run([sys.executable, *COMMANDS[name]], check=True, stdout=subprocess.DEVNULL)
        user_s.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)

    benchmark.pedantic(start, rounds=10 if benchmark.enabled else 1, warmup_rounds=1)
    benchmark.extra_info["user_s"] = round(min(user_s), 4)
