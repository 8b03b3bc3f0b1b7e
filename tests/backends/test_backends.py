"""Every installed backend on tiny networks: right answers, layers traced to their operators, refusals that explain."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from onnx_nets import DEPTHWISE_OPS, RESIDUAL_OPS, depthwise, residual
from pydeploy.backends import base, device
from pydeploy.backends.base import Backend, Engine, Session, open_backend
from pydeploy.backends.fused_nodes import source_nodes
from pydeploy.errors import BackendUnavailable, DataError, Mismatch
from pydeploy.profiling.profile import attribute, random_feeds


@dataclass(frozen=True)
class Setting:
    """A backend at a precision, and the relative error that its arithmetic may cost."""

    backend: str
    precision: str
    tolerance: float

    def open(self, **choice: int) -> Backend:
        return opened(self.backend, self.precision, **choice)


def opened(name: str, precision: str, **choice: int) -> Backend:
    if name == "openvino" and importlib.util.find_spec("openvino") is None:
        pytest.skip("needs the package openvino: pip install 'pydeploy-hil[openvino]'")
    try:
        return open_backend(name, precision=precision, threads=choice.get("threads", 1), batch=choice.get("batch", 1))
    except BackendUnavailable as error:
        if precision != "bf16":
            raise
        pytest.skip(str(error))


def setting(backend: str, precision: str, tolerance: float) -> object:
    marks = [pytest.mark.openvino] if backend == "openvino" else []
    return pytest.param(Setting(backend, precision, tolerance), id=f"{backend}-{precision}", marks=marks)


REAL = [
    setting("onnxruntime", "fp32", 1e-5),
    setting("onnxruntime", "int8", 0.03),
    setting("openvino", "fp32", 1e-5),
    setting("openvino", "bf16", 0.02),
    setting("openvino", "int8", 0.03),
]
ALL = [*REAL, setting("null", "fp32", 0.0), setting("null", "bf16", 0.0), setting("null", "int8", 0.0)]
every = pytest.mark.parametrize("case", ALL)
real = pytest.mark.parametrize("case", REAL)
names = pytest.mark.parametrize("name", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.openvino), "null"])


def bits_for(backend: Backend) -> int:
    return 7 if backend.target().saturates else 8


def built(case: Setting, folder: Path, **choice: int) -> tuple[Backend, Engine, Path]:
    backend = case.open(**choice)
    source = residual(folder / "net.onnx", qdq=case.precision == "int8", batch=choice.get("batch", 1),
                      weight_bits=bits_for(backend))  # fmt: skip
    return backend, backend.build(source, folder / "net.engine"), source


def relative_error(mine: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(mine - reference) / np.linalg.norm(reference))


@real
@pytest.mark.parametrize("batch", [1, 3])
def test_outputs_equal_the_reference_evaluator(case: Setting, batch: int, tmp_path: Path) -> None:
    backend, engine, source = built(case, tmp_path, batch=batch)
    with backend.open(engine) as session:
        feeds = random_feeds(session.inputs)
        outputs = session.run(feeds)
    (reference,) = ReferenceEvaluator(str(source)).run(None, feeds)
    assert list(outputs) == ["logits"]
    assert outputs["logits"].dtype == np.float32
    assert outputs["logits"].shape == (batch, 10)
    assert relative_error(outputs["logits"], reference) <= case.tolerance


@pytest.mark.parametrize("name", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.openvino)])
def test_int8_network_with_unsigned_activations(name: str, tmp_path: Path) -> None:
    """With these, runtimes fuse far more than with signed ones: ONNX Runtime computes the add in int8 too."""
    backend = opened(name, "int8")
    source = residual(tmp_path / "net.onnx", qdq=True, unsigned=True, weight_bits=bits_for(backend))
    with backend.open(backend.build(source, tmp_path / "net.engine")) as session:
        feeds = random_feeds(session.inputs)
        outputs = session.run(feeds)["logits"]
        layers = session.layers(feeds, 2)
    (reference,) = ReferenceEvaluator(str(source)).run(None, feeds)
    assert relative_error(outputs, reference) <= 0.03
    claims = [node for layer in layers for node in layer.nodes]
    assert sorted(set(claims) & set(RESIDUAL_OPS)) == sorted(RESIDUAL_OPS)
    assert claims.count("layer1.0.add") == 1


@names
def test_depthwise_network(name: str, tmp_path: Path) -> None:
    source = depthwise(tmp_path / "net.onnx")
    backend = opened(name, "fp32")
    with backend.open(backend.build(source, tmp_path / "net.engine")) as session:
        feeds = random_feeds(session.inputs)
        outputs = session.run(feeds)["logits"]
        times = attribute(session.layers(feeds, 3), DEPTHWISE_OPS)
    (reference,) = ReferenceEvaluator(str(source)).run(None, feeds)
    assert outputs.shape == reference.shape
    assert name == "null" or relative_error(outputs, reference) <= 1e-5
    assert tuple(key for key in times if key) == DEPTHWISE_OPS


@every
def test_session_facts_times_and_layers(case: Setting, tmp_path: Path) -> None:
    backend, engine, _ = built(case, tmp_path)
    with backend.open(engine) as session:
        assert [(s.name, s.dtype, s.shape) for s in session.inputs] == [("image", "float32", (1, 3, 12, 12))]
        assert [(s.name, s.dtype, s.shape) for s in session.outputs] == [("logits", "float32", (1, 10))]
        feeds = random_feeds(session.inputs)
        samples = session.time(feeds, 5)
        layers = session.layers(feeds, 5)
    assert samples.shape == (5,)
    assert samples.dtype == np.float64
    assert (samples > 0).all()
    assert len({layer.samples_us.shape for layer in layers}) == 1
    assert all((layer.samples_us >= 0).all() for layer in layers)
    claims = [node for layer in layers for node in layer.nodes if node in RESIDUAL_OPS]
    assert sorted(claims) == sorted(RESIDUAL_OPS), "each operator belongs to exactly one layer"


@every
def test_layers_come_in_execution_order(case: Setting, tmp_path: Path) -> None:
    backend, engine, source = built(case, tmp_path)
    with backend.open(engine) as session:
        layers = session.layers(random_feeds(session.inputs), 2)
    place = {op: index for index, layer in enumerate(layers) for op in layer.nodes}
    assert place["stem"] < place["layer1.0.conv1"] < place["layer1.0.conv2"] < place["fc"]
    assert place["stem"] < place["layer1.0.downsample.0"]
    known = {node.name for node in onnx.load(source).graph.node}
    assert {node for layer in layers for node in layer.nodes} <= known


def test_onnxruntime_layers_hold_their_operators_weights(tmp_path: Path) -> None:
    """Blocked weights are permuted and zero-padded, so their sums tell which layer they came from."""
    source = residual(tmp_path / "net.onnx")
    backend = open_backend("onnxruntime")
    engine = backend.build(source, tmp_path / "net.engine")
    model = onnx.load(engine.path)
    with backend.open(engine) as session:
        nodes = {layer.name: layer.nodes for layer in session.layers(random_feeds(session.inputs), 1)}
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    given = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(source).graph.initializer}
    checked = set()
    for node in model.graph.node:
        for op in set(nodes[node.name]) & set(RESIDUAL_OPS):
            assert np.isclose(held[node.input[1]].sum(), given[f"{op}.weight"].sum(), rtol=1e-4), node.name
            checked.add(op)
    assert checked == set(RESIDUAL_OPS)


def test_fused_nodes_are_named(tmp_path: Path) -> None:
    backend = open_backend("onnxruntime")
    engine = backend.build(residual(tmp_path / "net.onnx"), tmp_path / "net.engine")
    with backend.open(engine) as session:
        layers = session.layers(random_feeds(session.inputs), 1)
    stem = next(layer for layer in layers if "stem" in layer.nodes)
    assert stem.nodes == ("stem", "stem_out.relu")


@pytest.mark.openvino
@pytest.mark.parametrize(("precision", "executed"), [("fp32", "f32"), ("bf16", "bf16"), ("int8", "i8 u8")])
def test_openvino_computes_at_the_asked_precision(precision: str, executed: str, tmp_path: Path) -> None:
    """Without AMX, OpenVINO shifts signed inputs of a convolution to unsigned ones."""
    backend, engine, _ = built(Setting("openvino", precision, 0.0), tmp_path)
    with backend.open(engine) as session:
        ops = session._compiled.get_runtime_model().get_ordered_ops()
        facts = [op.get_rt_info() for op in ops]
    used = {str(f["runtimePrecision"].astype(str)) for f in facts if f["layerType"].astype(str) == "Convolution"}
    assert used
    assert used <= set(executed.split())


@every
def test_engine_record_survives_the_disk(case: Setting, tmp_path: Path) -> None:
    backend, engine, source = built(case, tmp_path)
    loaded = Engine.load(engine.path)
    assert loaded.target == backend.target()
    assert loaded == engine
    loaded.require_onnx(source)
    with backend.open(loaded) as session:
        assert session.run(random_feeds(session.inputs))["logits"].shape == (1, 10)


@every
def test_target_is_stable_and_tells_settings_apart(case: Setting) -> None:
    backend = case.open()
    assert backend.target() == case.open().target()
    assert backend.target().fingerprint != case.open(threads=2).target().fingerprint
    assert backend.target().fingerprint != case.open(batch=2).target().fingerprint
    assert backend.target().measured == (case.backend != "null")


@names
def test_zero_threads_means_all_usable(name: str) -> None:
    assert opened(name, "fp32", threads=0).threads == (1 if name == "null" else device.usable_cores())


WRONG_FEEDS: dict[str, Callable[[np.ndarray], dict[str, np.ndarray]]] = {
    "missing": lambda image: {},
    "extra": lambda image: {"image": image, "mask": image},
    "dtype": lambda image: {"image": image.astype(np.float64)},
    "shape": lambda image: {"image": image[:, :, :-1]},
}


@names
@pytest.mark.parametrize("wrong", WRONG_FEEDS)
def test_wrong_feeds_are_refused(name: str, wrong: str, tmp_path: Path) -> None:
    backend, engine, _ = built(Setting(name, "fp32", 0.0), tmp_path)
    with backend.open(engine) as session:
        feeds = WRONG_FEEDS[wrong](random_feeds(session.inputs)["image"])
        uses: list[Callable[[Session], object]] = [
            lambda s: s.run(feeds), lambda s: s.time(feeds, 1), lambda s: s.layers(feeds, 1),
        ]  # fmt: skip
        for use in uses:
            with pytest.raises(DataError, match=r"image"):
                use(session)


@names
def test_strided_feeds_are_read_right(name: str, tmp_path: Path) -> None:
    backend, engine, _ = built(Setting(name, "fp32", 0.0), tmp_path)
    with backend.open(engine) as session:
        image = random_feeds(session.inputs)["image"]
        strided = np.asfortranarray(image)
        assert not strided.flags.c_contiguous
        np.testing.assert_array_equal(
            session.run({"image": strided})["logits"], session.run({"image": image})["logits"]
        )
        assert session.time({"image": strided}, 2).shape == (2,)


@names
def test_engine_of_another_target_is_refused(name: str, tmp_path: Path) -> None:
    _, engine, _ = built(Setting(name, "fp32", 0.0), tmp_path, threads=1)
    with pytest.raises(Mismatch, match=r"threads: 2 against 1"), opened(name, "fp32", threads=2).open(engine):
        pass


def refuse_open(backend: Backend, engine: Engine, match: str) -> None:
    with pytest.raises(DataError, match=match), backend.open(engine):
        pass


@names
@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "missing"])
def test_damaged_engine_is_refused(name: str, damage: str, tmp_path: Path) -> None:
    backend, engine, _ = built(Setting(name, "fp32", 0.0), tmp_path)
    whole = engine.path.read_bytes()
    engine.path.unlink()
    if damage != "missing":
        engine.path.write_bytes(
            {"truncated": whole[: len(whole) // 2], "garbage": b"\x93" * 4000, "empty": b""}[damage]
        )
    refuse_open(backend, engine, "build the engine again")
    with pytest.raises(DataError, match="build the engine again"):
        Engine.load(engine.path)
    # A record that was never saved carries no hash; the runtime's own complaint is then passed on.
    refuse_open(backend, replace(engine, sha256=""), "build the engine again")


def test_plain_onnx_is_not_an_engine(tmp_path: Path) -> None:
    source = residual(tmp_path / "net.onnx")
    backend = open_backend("onnxruntime")
    engine = Engine(source, "onnxruntime", backend.target(), base.sha256(source)).save()
    refuse_open(backend, engine, "was not built by pydeploy")


@names
def test_other_source_is_told_apart(name: str, tmp_path: Path) -> None:
    _, engine, _ = built(Setting(name, "fp32", 0.0), tmp_path)
    with pytest.raises(Mismatch, match="was not built from"):
        engine.require_onnx(residual(tmp_path / "other.onnx", seed=1))


def refuse_build(backend: Backend, source: Path, match: str) -> None:
    out = source.parent / "refused" / "net.engine"
    with pytest.raises(DataError, match=match):
        backend.build(source, out)
    assert not out.exists()
    assert not list(out.parent.glob("*")), "nothing half-written"


@names
def test_dynamic_shape_is_refused(name: str, tmp_path: Path) -> None:
    refuse_build(opened(name, "fp32"), residual(tmp_path / "net.onnx", batch="N"), r"dynamic shape \[N, 3, 12, 12\]")


@names
def test_other_batch_is_refused(name: str, tmp_path: Path) -> None:
    refuse_build(opened(name, "fp32", batch=4), residual(tmp_path / "net.onnx", batch=2), r"\[2, 3, .*batch 4")


@names
def test_int8_needs_qdq_nodes_and_fp32_none(name: str, tmp_path: Path) -> None:
    refuse_build(opened(name, "int8"), residual(tmp_path / "net.onnx"), "no Q/DQ nodes.*pydeploy quantize")
    refuse_build(opened(name, "fp32"), residual(tmp_path / "q.onnx", qdq=True), "holds Q/DQ nodes.*build it as int8")


@names
@pytest.mark.parametrize("content", [b"", b"not an ONNX file", None], ids=["empty", "text", "missing"])
def test_what_is_no_onnx_is_refused(name: str, content: bytes | None, tmp_path: Path) -> None:
    source = tmp_path / "net.onnx"
    if content is not None:
        source.write_bytes(content)
    refuse_build(opened(name, "fp32"), source, "does not exist" if content is None else "not a valid ONNX file")


@names
def test_weights_in_a_second_file_are_refused(name: str, tmp_path: Path) -> None:
    source = tmp_path / "net.onnx"
    model = onnx.load(residual(source))
    onnx.save(model, source, save_as_external_data=True, location="weights.bin", size_threshold=0)
    refuse_build(opened(name, "fp32"), source, "weights in a second file")


@names
def test_unknown_precision_is_refused(name: str) -> None:
    opened(name, "fp32")
    with pytest.raises(BackendUnavailable, match=r"fp32.*'fp4' was asked for"):
        open_backend(name, precision="fp4")


def test_unknown_backend_names_the_nearest() -> None:
    with pytest.raises(BackendUnavailable, match="did you mean 'openvino'"):
        open_backend("openvin")


def test_null_follows_the_stated_roofline(tmp_path: Path) -> None:
    """width 16: the stem has 12*12 positions, 3x3 taps, 16 of 16 outputs, 3 inputs padded to 16."""
    backend = open_backend("null")
    with backend.open(backend.build(residual(tmp_path / "net.onnx", width=16), tmp_path / "net.engine")) as session:
        feeds = random_feeds(session.inputs)
        layers = {layer.name: layer.samples_us[0] for layer in session.layers(feeds, 1)}
        whole = session.time(feeds, 1)[0]
        assert not session.run(feeds)["logits"].any()
    assert layers["stem"] == pytest.approx(12 * 12 * 9 * 16 * 16 / 20_000 + 5)
    moved = 32 + 10 * 32 + 10
    assert layers["fc"] == pytest.approx(moved * 4 / 10_000 + 5)
    assert whole == pytest.approx(sum(layers.values()) + 10)


def test_null_has_a_staircase_and_faster_precisions(tmp_path: Path) -> None:
    def latency(width: int, precision: str = "fp32") -> float:
        backend = open_backend("null", precision=precision)
        source = residual(tmp_path / "net.onnx", width=width, qdq=precision == "int8")
        with backend.open(backend.build(source, tmp_path / "net.engine")) as session:
            return float(session.time(random_feeds(session.inputs), 1)[0])

    assert latency(17) > 1.2 * latency(16)
    assert latency(18) < 1.02 * latency(17)
    assert latency(64) > latency(64, "bf16") > latency(64, "int8")


def test_device_facts_from_cpuinfo(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        "processor\t: 0\nmodel name\t: Some  CPU @ 2.00GHz\ncpu MHz\t\t: 1234.5\n"
        "flags\t\t: fpu avx2 amx_int8 avx512_vnni\n\nprocessor\t: 1\nmodel name\t: Other\n"
    )
    found = device.cpu(cpuinfo)
    assert found.name == "Some CPU @ 2.00GHz"
    assert found.facts["instruction_sets"] == "avx2 avx512_vnni amx_int8"
    assert "1234" not in str(found)
    assert found.cores == device.usable_cores() >= 1


def test_device_without_cpuinfo(tmp_path: Path) -> None:
    found = device.cpu(tmp_path / "none")
    assert found.name
    assert "instruction_sets" not in found.facts


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux tells which cores a process may use")
def test_conditions_are_read_for_the_cores_of_this_process_and_are_no_facts(tmp_path: Path) -> None:
    cpuinfo, cores = tmp_path / "cpuinfo", sorted(os.sched_getaffinity(0))
    count = max(cores) + 1
    cpuinfo.write_text("\n\n".join(f"processor\t: {i}\ncpu MHz\t\t: {1000 + i}.5" for i in range(count)))
    for core in cores:
        (tmp_path / f"cpu{core}" / "cpufreq").mkdir(parents=True)
        (tmp_path / f"cpu{core}" / "cpufreq" / "scaling_governor").write_text("powersave\n")
    assert device.conditions(cpuinfo, tmp_path) == {
        "affinity": " ".join(map(str, cores)),
        "clock_mhz": " ".join(f"{1000 + core}.5" for core in cores),
        "governor": "powersave",
    }
    assert set(device.conditions(tmp_path / "none", tmp_path / "none")) == {"affinity"}
    assert not set(device.conditions()) & set(device.cpu().facts)


@pytest.mark.parametrize(
    ("text", "limit"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", None), ("", None)],
    ids=["one and a half", "half", "unlimited", "empty"],
)  # fmt: skip
def test_cpu_quota_limits_the_cores(text: str, limit: int | None, tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text(text)
    every_core = device.usable_cores(tmp_path / "none")
    assert device.usable_cores(quota) == min(every_core, limit or every_core)


def test_source_nodes_tell_two_convolutions_before_one_add_apart(tmp_path: Path) -> None:
    """Both convolutions are two steps before the node that the second engine layer is named after."""
    graph = onnx.load(residual(tmp_path / "net.onnx")).graph
    engine = [("stem_out_relu_nchwc", "Conv"), ("layer1.0.downsample.0_out_nchwc", "Conv"), ("sum_relu_nchwc", "Conv")]
    found = source_nodes(graph, engine)
    assert "layer1.0.downsample.0" in found["layer1.0.downsample.0_out_nchwc"]
    assert {"layer1.0.conv2", "layer1.0.add", "sum.relu"} <= set(found["sum_relu_nchwc"])


def test_source_nodes_of_decorated_and_inserted_nodes(tmp_path: Path) -> None:
    graph = onnx.load(residual(tmp_path / "net.onnx", qdq=True)).graph
    engine = [("stem_token_3", "QLinearConv"), ("ReorderOutput", "ReorderOutput"), ("image_DQ", "DequantizeLinear"),
              ("image_DQ/duplicated", "DequantizeLinear"), ("fused fc", "FusedGemm")]  # fmt: skip
    found = source_nodes(graph, engine)
    assert "stem" in found["stem_token_3"]
    assert found["ReorderOutput"] == ()
    assert found["image_DQ/duplicated"] == ("image_DQ",)
    assert "fc" in found["fused fc"]
