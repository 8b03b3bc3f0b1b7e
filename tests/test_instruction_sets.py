"""Instruction sets: what a runtime may use is a fact of its target."""

from __future__ import annotations

from pathlib import Path

import pytest

from pydeploy.backends import device
from pydeploy.timing.records import Target

SETS = ("avx2 avx512f avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16 avx_vnni", "amx_tile amx_int8 amx_bf16")
LEVELS = ("AVX512_CORE", "AVX512_CORE_VNNI", "AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX512_CORE_AMX")


def target(facts: dict[str, str]) -> Target:
    return Target("cpu", "openvino", "1", "fp32", 1, 1, facts)


@pytest.mark.parametrize("level", range(len(LEVELS)), ids=LEVELS)
def test_a_cap_takes_away_exactly_what_lies_above_it(level: int, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags\t: fpu {' '.join(SETS)}\n")
    found = device.cpu(tmp_path / "cpuinfo", LEVELS[level])
    assert target(dict(found.facts)).instruction_sets == set(" ".join(SETS[: level + 1]).split())


def test_caps_only_take_away(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("flags\t: fpu avx2 fma\n")
    for cap in ("", "AVX2", *LEVELS):
        assert device.cpu(tmp_path / "cpuinfo", cap).facts["instruction_sets"] == "avx2 fma"
    assert not device.cpu(tmp_path / "cpuinfo", "SSE41").facts["instruction_sets"]


@pytest.mark.parametrize(
    ("environment", "cap"),
    [({}, ""), ({"ONEDNN_MAX_CPU_ISA": "avx2"}, "AVX2"), ({"DNNL_MAX_CPU_ISA": "AVX512_CORE"}, "AVX512_CORE"),
     ({"ONEDNN_MAX_CPU_ISA": "ALL"}, ""), ({"ONEDNN_MAX_CPU_ISA": "nonsense"}, ""),
     ({"ONEDNN_MAX_CPU_ISA": "AVX2", "DNNL_MAX_CPU_ISA": "AVX"}, "AVX2")],
)  # fmt: skip
def test_the_cap_is_read_from_the_environment(environment: dict[str, str], cap: str) -> None:
    assert device.onednn_cap(environment) == cap


@pytest.mark.parametrize(
    ("machine", "sets", "saturates", "bf16", "amx"),
    [("x86_64", "avx2 fma", True, False, False), ("x86_64", "avx512f avx512bw", True, False, False),
     ("x86_64", "avx2 avx_vnni", False, False, False), ("x86_64", "avx512f avx512_vnni", False, False, False),
     ("x86_64", "avx512_vnni avx512_bf16 amx_tile amx_int8 amx_bf16", False, True, True),
     ("AMD64", None, True, False, False), ("aarch64", "asimd", False, False, False),
     ("aarch64", "asimd bf16 i8mm", False, True, False), (None, None, False, False, False)],
)  # fmt: skip
def test_what_a_target_can_do_follows_from_its_sets(
    machine: str | None, sets: str | None, saturates: bool, bf16: bool, amx: bool
) -> None:
    facts = {"machine": machine, "instruction_sets": sets}
    found = target({key: value for key, value in facts.items() if value is not None})
    assert (found.saturates, found.has_bf16, found.has_amx) == (saturates, bf16, amx)
    assert Target.from_json(found.to_json()).saturates is saturates
