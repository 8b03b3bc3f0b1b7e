"""Whether a training computes in bfloat16."""

from __future__ import annotations

from pathlib import Path

import torch


def bf16_wanted(amp: str, device: torch.device, flags: set[str] | None = None) -> bool:
    """Whether to compute in bfloat16 on `device`: as `amp` says, and for ``auto`` where the hardware is fast at it.

    `flags` are the processor's instruction sets (None: those of this one).
    """
    if amp != "auto":
        return amp == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(
        {"amx_bf16", "avx512_bf16", "bf16"} & (_cpu_flags() if flags is None else flags)
    )


def _cpu_flags() -> set[str]:
    """Instruction sets as Linux lists them (``flags`` on x86, ``Features`` on ARM); empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    first = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return set(first.partition(":")[2].split())
