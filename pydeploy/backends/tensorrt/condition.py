"""The device's condition around a measurement: were clocks steady, was the GPU waiting for the host?

Everything is read, nothing is set: pydeploy never changes clocks or power limits.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

UNSTABLE = 0.025
"""Coefficient of variation of the compute time above which trtexec calls clocks unstable."""
ENQUEUE_BOUND = 0.8
"""Share of the compute time that enqueueing may take before trtexec calls a network enqueue-bound."""
SLOWDOWN = {"sw_power_cap": 0x4, "hw_slowdown": 0x8, "sw_thermal": 0x20, "hw_thermal": 0x40, "hw_power_brake": 0x80}
"""Bits of NVML's clock event reasons that mean: slower than it could be (nvml.h)."""
_KEPT = 4096


class Nvml:
    """The management library's view of one GPU; every reading is left out where the device does not offer it (Jetson).

    The GPU is found by its place on the PCI bus, because NVML and CUDA number GPUs differently.
    """

    def __init__(self, pci_bus_id: str) -> None:
        self._nvml: Any = None
        self._device: Any = None
        try:
            self._nvml = importlib.import_module("pynvml")
            self._nvml.nvmlInit()
            self._device = self._nvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id)
        except Exception:  # the package or the library is missing, or the device has no NVML
            self._device = None

    def read(self) -> dict[str, float]:
        """SM clock (MHz), temperature (C), power (W), and the bits of the reasons for lowered clocks."""
        if self._device is None:
            return {}
        calls = {
            "sm_clock_mhz": ("nvmlDeviceGetClockInfo", (1,), 1.0),  # NVML_CLOCK_SM
            "memory_clock_mhz": ("nvmlDeviceGetClockInfo", (2,), 1.0),  # NVML_CLOCK_MEM
            "temperature_c": ("nvmlDeviceGetTemperature", (0,), 1.0),  # NVML_TEMPERATURE_GPU
            "power_w": ("nvmlDeviceGetPowerUsage", (), 1e-3),
            "clock_reasons": (self._reasons, (), 1.0),
        }
        found = {}
        for name, (call, arguments, unit) in calls.items():
            try:
                found[name] = float(getattr(self._nvml, call)(self._device, *arguments)) * unit
            except Exception:  # noqa: PERF203, S112 (one missing reading must not lose the others)
                continue
        return found

    @property
    def _reasons(self) -> str:
        newer = "nvmlDeviceGetCurrentClocksEventReasons"
        return newer if hasattr(self._nvml, newer) else "nvmlDeviceGetCurrentClocksThrottleReasons"


@dataclass
class Condition:
    """Collects what the timed runs of a session showed."""

    nvml: Nvml
    cuda_graph: bool = False
    gpu_us: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
    enqueue_us: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
    readings: deque[dict[str, float]] = field(default_factory=lambda: deque(maxlen=_KEPT))

    def add(self, gpu_us: Sequence[float], enqueue_us: Sequence[float]) -> None:
        """Samples of one turn; its first run, which finds the caches full of other data, says nothing about clocks."""
        self.gpu_us.extend(gpu_us[1:] or gpu_us)
        self.enqueue_us.extend(enqueue_us[1:] or enqueue_us)
        self.readings.append(self.nvml.read())

    def summary(self) -> Mapping[str, float]:
        """``variation``, ``enqueue_share``, flags ``unstable`` and ``enqueue_bound`` (0 or 1), and NVML's readings."""
        if not self.gpu_us:
            return {}
        times = np.array(self.gpu_us)
        variation = float(times.std() / times.mean()) if times.mean() > 0 else 0.0
        share = float(np.median(np.array(self.enqueue_us)) / max(float(np.median(times)), 1e-9))
        facts = {"variation": variation, "enqueue_share": share, "cuda_graph": float(self.cuda_graph)}
        for name in ("sm_clock_mhz", "memory_clock_mhz", "temperature_c", "power_w"):
            values = [reading[name] for reading in self.readings if name in reading]
            if values:
                facts |= {name: float(median(values)), f"{name}_min": min(values), f"{name}_max": max(values)}
        reasons = 0
        for reading in self.readings:
            reasons |= int(reading.get("clock_reasons", 0))
        slowed = [name for name, bit in SLOWDOWN.items() if reasons & bit]
        facts |= {f"clocks_lowered_by_{name}": 1.0 for name in slowed}
        # With two queries in flight a plain enqueue hides behind the GPU's work unless it takes nearly as long.
        return {
            **facts,
            "unstable": float(variation > UNSTABLE or bool(slowed)),
            "enqueue_bound": float(share > ENQUEUE_BOUND),
        }
