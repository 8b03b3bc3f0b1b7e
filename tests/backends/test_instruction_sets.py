"""Instruction sets: what a runtime may use is a fact of its target, and every engine test passes with fewer of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from onnx_nets import residual
from pydeploy.backends import device
from pydeploy.backends.base import open_backend
from pydeploy.profiling.profile import random_feeds
from pydeploy.timing.records import Target

TESTS = Path(__file__).parents[1]

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


NEEDS = {
    "AVX2": "avx2",
    "AVX512_CORE": "avx512bw",
    "AVX512_CORE_VNNI": "avx512_vnni",
    "AVX512_CORE_BF16": "avx512_bf16",
}
APART = (
    "test_instruction_sets.py",
    "test_process_state.py",
)  # this one, and one that instruction sets do not matter to


@pytest.mark.openvino
@pytest.mark.parametrize("cap", NEEDS)
def test_engines_are_right_with_fewer_instruction_sets(cap: str) -> None:
    """OpenVINO's tests in a process that is held to `cap`. Only what the instruction sets lack is skipped, and says so."""
    pytest.importorskip("openvino", reason="needs the package openvino: pip install 'pydeploy-hil[openvino]'")
    if NEEDS[cap] not in device.cpu().facts.get("instruction_sets", "").split():
        pytest.skip(f"this processor has no {NEEDS[cap]}")
    files = [
        str(p) for p in sorted(TESTS.glob("*/test_*.py")) if "mark.openvino" in p.read_text() and p.name not in APART
    ]
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "-m", "openvino and not slow", *files]
    settings = {**os.environ, "ONEDNN_MAX_CPU_ISA": cap, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=TESTS.parent, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
    held = target(dict(device.cpu(cap=cap).facts))
    lacking = {
        "this CPU has no bf16 instructions": not held.has_bf16,
        "8 bits of weights saturate here": held.saturates,
    }
    told = re.findall(r"SKIPPED \[\d+\] \S+ (.*)", done.stdout)
    for reason in told:
        assert any(missing and reason.startswith(start) for start, missing in lacking.items()), reason
    assert bool(told) == (held.saturates or not held.has_bf16)


@pytest.fixture
def without_vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"machine": "x86_64", "instruction_sets": "avx avx2 fma f16c"}
    monkeypatch.setattr(device, "cpu", lambda *_, **__: device.Device("an older CPU", 1, facts))


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.usefixtures("without_vnni")
def test_onnxruntime_multiplies_exactly_without_vnni(unsigned: bool, bits: int, tmp_path: Path) -> None:
    """There, sums of two uint8 x int8 products are cut off at 16 bits; weights within 7 bits, or uint8 ones, are not."""
    source = residual(tmp_path / "net.onnx", qdq=True, unsigned=unsigned, weight_bits=bits)
    backend = open_backend("onnxruntime", precision="int8", threads=1)
    engine = backend.build(source, tmp_path / "net.engine")
    with backend.open(engine) as session:
        feeds = random_feeds(session.inputs)
        outputs = session.run(feeds)["logits"]
    (reference,) = ReferenceEvaluator(str(source)).run(None, feeds)
    np.testing.assert_allclose(outputs, reference, rtol=0.0, atol=0.02 * np.abs(reference).max())
    graph = onnx.load(engine.path).graph
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    multiplied = [held[name] for node in graph.node if node.op_type in ("QLinearConv", "QGemm", "ConvInteger")
                  for name in node.input if name in held and held[name].ndim > 1]  # fmt: skip
    assert multiplied if unsigned else True
    for weights in multiplied:
        assert weights.dtype == (np.int8 if bits == 7 else np.uint8)
        assert bits == 8 or np.abs(weights.astype(int)).max() <= 64


def test_onnxruntime_keeps_fast_products_where_the_processor_has_vnni(tmp_path: Path) -> None:
    backend = open_backend("onnxruntime", precision="int8", threads=1)
    if backend.target().saturates:
        pytest.skip("this processor has no VNNI")
    engine = backend.build(residual(tmp_path / "net.onnx", qdq=True, unsigned=True), tmp_path / "net.engine")
    assert any(
        t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1 for t in onnx.load(engine.path).graph.initializer
    )
