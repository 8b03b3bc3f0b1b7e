"""What this computer is: the facts of a `Target`, which stay the same from run to run, and the conditions, which do not."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

NOTABLE = ("avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16",
           "avx512_fp16", "avx_vnni_int8", "avx_ne_convert", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp",
           "asimdhp", "i8mm", "bf16", "sve", "sve2")  # fmt: skip
"""Instruction sets that change which kernels a CPU runtime chooses, by their names in ``/proc/cpuinfo``."""

LANES = 16
"""Channel multiple at which the search for good widths starts on processors: the float32 numbers of an AVX-512 register."""

_AVX2 = "avx avx2 fma f16c"
_AVX512 = f"{_AVX2} avx512f avx512bw"
_FP16 = f"{_AVX512} avx512_vnni avx512_bf16 avx512_fp16 avx_vnni"
_AMX = f"{_FP16} amx_tile amx_int8 amx_bf16"
ONEDNN_CAPS: Mapping[str, str] = {
    "SSE41": "",
    "AVX": "avx",
    "AVX2": _AVX2,
    "AVX2_VNNI": f"{_AVX2} avx_vnni",
    "AVX2_VNNI_2": f"{_AVX2} avx_vnni avx_vnni_int8 avx_ne_convert",
    "AVX512_CORE": _AVX512,
    "AVX512_CORE_VNNI": f"{_AVX512} avx512_vnni",
    "AVX512_CORE_BF16": f"{_AVX512} avx512_vnni avx512_bf16",
    "AVX512_CORE_FP16": _FP16,
    "AVX10_1_512": _FP16,
    "AVX512_CORE_AMX": _AMX,
    "AVX10_1_512_AMX": _AMX,
}
"""What oneDNN may use of `NOTABLE` under each value of ``ONEDNN_MAX_CPU_ISA`` ("CPU dispatcher control" in its manual)."""


def onednn_cap(environment: Mapping[str, str] = os.environ) -> str:
    """The level of `ONEDNN_CAPS` that oneDNN, and so OpenVINO, is held to by the environment; '' = none."""
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        if value := environment.get(name, ""):
            return value.upper() if value.upper() in ONEDNN_CAPS else ""
    return ""


@dataclass(frozen=True, slots=True)
class Device:
    """Name of the processor, number of cores that this process may use, and further stable facts."""

    name: str
    cores: int
    facts: Mapping[str, str]


def cpu(cpuinfo: Path = Path("/proc/cpuinfo"), cap: str = "") -> Device:
    """The processor that this process runs on; where there is no ``/proc/cpuinfo``, what `platform` tells.

    `cap`, one of `ONEDNN_CAPS`, leaves out the instruction sets that a runtime was told not to use.
    """
    fields = next(iter(_processors(cpuinfo)), {})
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    name = fields.get("model name") or platform.processor() or platform.machine() or "unknown CPU"
    cores = usable_cores()
    facts = {"system": platform.system(), "machine": platform.machine(), "cores": str(cores)}
    if flags:
        allowed = ONEDNN_CAPS[cap].split() if cap else NOTABLE
        facts["instruction_sets"] = " ".join(flag for flag in NOTABLE if flag in flags and flag in allowed)
    return Device(name, cores, facts)


def conditions(cpuinfo: Path = Path("/proc/cpuinfo"), cores: Path = Path("/sys/devices/system/cpu")) -> dict[str, str]:
    """What may differ from run to run on one target, as far as it can be read: affinity, clocks now, governor, limits.

    To be kept beside measurements, never compared: equal computers differ in all of these.
    """
    used = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    found = {"affinity": " ".join(map(str, used))}
    blocks = _processors(cpuinfo)
    found["clock_mhz"] = _distinct(blocks[core].get("cpu MHz", "") for core in used if core < len(blocks))
    for name, file in (
        ("governor", "scaling_governor"),
        ("least_khz", "scaling_min_freq"),
        ("most_khz", "scaling_max_freq"),
    ):
        found[name] = _distinct(_text(cores / f"cpu{core}" / "cpufreq" / file) for core in used)
    return {name: value for name, value in found.items() if value}


def _distinct(values: Iterable[str]) -> str:
    return " ".join(dict.fromkeys(value for value in values if value))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _processors(cpuinfo: Path) -> list[dict[str, str]]:
    """The fields of each logical processor, in order; none where the file cannot be read."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    blocks = [[line.partition(":") for line in block.splitlines()] for block in text.strip().split("\n\n")]
    return [{key.strip(): " ".join(value.split()) for key, _, value in pairs} for pairs in blocks]


def usable_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores in this process's affinity mask, or fewer where a container's CPU quota allows less; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        limit, period = quota.read_text(encoding="ascii").split()
        return max(1, min(cores, math.ceil(int(limit) / int(period))))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return cores
