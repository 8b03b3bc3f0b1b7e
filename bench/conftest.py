"""Says on what the numbers were taken: timings of different machines must not be compared."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np

from pydeploy import _core


def pytest_report_header() -> list[str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # Three takes of the same fixed work: a spread above a few percent means that the machine is not quiet.
    reference_us = ", ".join(f"{_core.reference_kernel_us(1000):.0f}" for _ in range(3))
    return [
        f"device: {_processor()}, {cores} cores, Python {platform.python_version()}, NumPy {np.__version__}",
        f"reference kernel: {reference_us} us",
    ]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()
