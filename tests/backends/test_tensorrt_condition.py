"""What is said of the device's condition, at its limits: trtexec's own limits, NVML's own bits."""

from __future__ import annotations

import sys
import types

import pytest

from pydeploy.backends.tensorrt.condition import Condition, Nvml


class Still:
    """A GPU that tells nothing but one reason for lowered clocks."""

    def __init__(self, reasons: int = 0) -> None:
        self.reasons = reasons

    def read(self) -> dict[str, float]:
        return {"clock_reasons": float(self.reasons)} if self.reasons else {}


def summary(gpu_us: list[float], enqueue_us: list[float], reasons: int = 0) -> dict[str, float]:
    condition = Condition(Still(reasons))  # type: ignore[arg-type]
    condition.add([0.0, *gpu_us], [0.0, *enqueue_us])
    return dict(condition.summary())


@pytest.mark.parametrize(("apart", "unstable"), [(0.024, 0.0), (0.026, 1.0)])
def test_clocks_are_unstable_above_two_and_a_half_percent(apart: float, unstable: float) -> None:
    """Two values equally often: their standard deviation is half their distance."""
    found = summary([100 * (1 - apart), 100 * (1 + apart)] * 20, [1.0] * 40)
    assert found["variation"] == pytest.approx(apart)
    assert found["unstable"] == unstable


@pytest.mark.parametrize(("share", "bound"), [(0.79, 0.0), (0.81, 1.0)])
def test_a_run_is_enqueue_bound_above_four_fifths(share: float, bound: float) -> None:
    found = summary([100.0] * 10, [100 * share] * 10)
    assert found["enqueue_share"] == pytest.approx(share)
    assert found["enqueue_bound"] == bound


REASONS = [
    (0x1, ""),  # nvmlClocksEventReasonGpuIdle
    (0x2, ""),  # nvmlClocksEventReasonApplicationsClocksSetting: the user's own choice
    (0x4, "sw_power_cap"),  # nvmlClocksEventReasonSwPowerCap
    (0x8, "hw_slowdown"),  # nvmlClocksThrottleReasonHwSlowdown
    (0x10, ""),  # nvmlClocksEventReasonSyncBoost
    (0x20, "sw_thermal"),  # nvmlClocksEventReasonSwThermalSlowdown
    (0x40, "hw_thermal"),  # nvmlClocksThrottleReasonHwThermalSlowdown
    (0x80, "hw_power_brake"),  # nvmlClocksThrottleReasonHwPowerBrakeSlowdown
]
"""Bits of nvml.h."""


@pytest.mark.parametrize(("reasons", "name"), REASONS)
def test_lowered_clocks_by_their_reason(reasons: int, name: str) -> None:
    found = summary([100.0] * 10, [1.0] * 10, reasons)
    assert [key for key in found if key.startswith("clocks_lowered")] == ([f"clocks_lowered_by_{name}"] if name else [])
    assert found["unstable"] == float(bool(name))


@pytest.mark.parametrize(
    "call", ["nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"]
)
def test_reasons_are_read_by_their_new_or_their_old_name(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("pynvml")
    fake.nvmlInit = lambda: None  # type: ignore[attr-defined]
    fake.nvmlDeviceGetHandleByPciBusId = lambda bus: bus  # type: ignore[attr-defined]
    setattr(fake, call, lambda handle: 0x20)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    assert Nvml("0000:07:00.0").read() == {"clock_reasons": 32.0}


def test_nothing_timed_is_nothing_said() -> None:
    assert dict(Condition(Still()).summary()) == {}  # type: ignore[arg-type]
