"""The TensorRT backend on every version's names, with an analytic device behind them. No GPU is involved anywhere."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import signal
import sys
import threading
import types
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

import trt_fake
from cuda_fake import Driver
from onnx_nets import RESIDUAL_OPS, residual
from pydeploy.backends.base import Backend, Engine, open_backend, reopen
from pydeploy.backends.tensorrt import driver, timing_cache
from pydeploy.backends.tensorrt.checkup import checkup
from pydeploy.backends.tensorrt.condition import Condition
from pydeploy.backends.tensorrt.options import Options
from pydeploy.cli import engine_verbs
from pydeploy.cli.console import show_profile
from pydeploy.errors import BackendUnavailable, ConfigError, DataError, Mismatch
from pydeploy.profiling.profile import attribute, paddings, profile, random_feeds
from pydeploy.quant.half import to_half
from pydeploy.quant.implicit import entropy_calibrator
from pydeploy.timing.records import Profile
from pydeploy.timing.rounds import unwatched
from trt_bench import VERSIONS, machine
from trt_fake import PROFILE_US, World

NEWEST = VERSIONS[-1]


def opened(precision: str = "fp32", options: str = "", batch: int = 1) -> Backend:
    return open_backend("tensorrt", precision=precision, batch=batch, options=options)


def built(folder: Path, precision: str = "fp32", options: str = "", batch: int = 1) -> tuple[Backend, Engine]:
    backend = opened(precision, options, batch)
    source = residual(folder / "net.onnx", qdq=precision == "int8", batch=batch)
    return backend, backend.build(source, folder / "net.engine")


def typed_by_default(world: World) -> bool:
    return tuple(map(int, world.surface.version.split(".")[:2])) >= (10, 12)


# ---------------------------------------------------------------- build


def test_build_asks_for_what_a_comparable_engine_needs(world: World, tmp_path: Path) -> None:
    built(tmp_path, options="workspace_mib=64,optimization_level=5,sparse")
    config = world.config
    assert config.avg_timing_iterations == 8
    assert config.max_aux_streams == 0
    assert config.builder_optimization_level == 5
    assert config.profiling_verbosity.name == "DETAILED"
    assert trt_fake.core_of(config).pools == {"WORKSPACE": 64 << 20}
    assert world.flags == {"SPARSE_WEIGHTS"}, "true fp32: TF32, on by default, is off"


def test_no_limit_means_no_call(world: World, tmp_path: Path) -> None:
    built(tmp_path)
    assert trt_fake.core_of(world.config).pools == {}
    assert "IBuilderConfig.set_memory_pool_limit" not in world.calls


@pytest.mark.parametrize("precision", ["tf32", "fp16", "bf16", "int8"])
def test_precision_flags_by_version(world: World, precision: str, tmp_path: Path, monkeypatch: Any) -> None:
    if precision == "bf16" and world.major < 10:
        with pytest.raises(BackendUnavailable, match="bf16 needs TensorRT 10"):
            opened(precision)
        return
    built(tmp_path, precision)
    weak: dict[str, set[str]] = {"tf32": set(), "fp16": {"FP16"}, "bf16": {"BF16"}, "int8": {"FP16", "INT8"}}
    expected = set() if typed_by_default(world) else weak[precision]
    assert world.flags == {"TF32"} | expected
    facts = json.loads((tmp_path / "net.engine.build.json").read_text())
    assert facts["strongly_typed"] == typed_by_default(world)


def test_network_flags_by_version(world: World, tmp_path: Path) -> None:
    built(tmp_path)
    explicit_batch, strongly_typed = 1, 2
    expected = {"8": explicit_batch, "11": 0}.get(world.surface.version.split(".")[0], explicit_batch)
    if world.major == 10 and typed_by_default(world):
        expected |= strongly_typed
    assert world.network_flags == expected


def test_a_typed_file_makes_a_typed_network_where_the_version_can(world: World, tmp_path: Path) -> None:
    source = residual(tmp_path / "net.onnx")
    model = onnx.load(source)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(1, np.float16), "unused"))
    onnx.save(model, source)
    opened("fp16").build(source, tmp_path / "net.engine")
    facts = json.loads((tmp_path / "net.engine.build.json").read_text())
    assert facts["strongly_typed"] == (world.major >= 10)


def test_parser_errors_name_their_nodes(world: World, tmp_path: Path) -> None:
    world.fail.add("parse")
    with pytest.raises(DataError, match=r"node 'stem'.*Unsupported operator 0 \(see the log\)\n.*node 'stem_out.relu'"):
        built(tmp_path)
    assert not (tmp_path / "net.engine").exists()


@pytest.mark.parametrize(
    ("failure", "text"),
    [("build", "Could not find any implementation for node conv1.*leave the layer in float"),
     ("memory", "OutOfMemory.*set workspace_mib lower")],
)  # fmt: skip
def test_a_failed_build_says_why(world: World, failure: str, text: str, tmp_path: Path) -> None:
    world.fail.add(failure)
    with pytest.raises(DataError, match=text):
        built(tmp_path)
    assert not list(tmp_path.glob("net.engine*")), "nothing half-written"


def test_dynamic_batch_gets_a_profile(world: World, tmp_path: Path) -> None:
    backend = opened(batch=4)
    engine = backend.build(residual(tmp_path / "net.onnx", batch="N"), tmp_path / "net.engine")
    with backend.open(engine) as session:
        assert session.inputs[0].shape == (4, 3, 12, 12)
        assert session.outputs[0].shape == (4, 10)
        assert session.time(random_feeds(session.inputs), 3).shape == (3,)


def test_the_profile_goes_from_one_to_the_batch_and_is_tuned_for_it(world: World, tmp_path: Path) -> None:
    opened(batch=4).build(residual(tmp_path / "net.onnx", batch="N"), tmp_path / "net.engine")
    smallest, most = (1, 3, 12, 12), (4, 3, 12, 12)
    assert trt_fake.core_of(world.config).ranges == {"image": (smallest, most, most)}


@pytest.mark.parametrize(
    ("failure", "text"),
    [("input shape", r"was not built for input 'image' of shape \[4, 3, 12, 12\]"), ("address", "refuses the memory of 'image'"),
     ("unknown shapes", r"the shapes of \['logits'\] are not known"), ("other dynamic", "only a batch may be dynamic")],
)  # fmt: skip
def test_an_engine_that_does_not_fit_is_one_sentence(world: World, failure: str, text: str, tmp_path: Path) -> None:
    backend = opened(batch=4)
    engine = backend.build(residual(tmp_path / "net.onnx", batch="N"), tmp_path / "net.engine")
    world.fail.add(failure)
    with pytest.raises(DataError, match=text):
        backend.open(engine).__enter__()
    assert world.memory == {}


@pytest.mark.parametrize("failure", ["profile", "shape"])
def test_a_refused_shape_is_one_sentence(world: World, failure: str, tmp_path: Path) -> None:
    world.fail.add(failure)
    with pytest.raises(DataError, match="TensorRT refuses"):
        opened(batch=4).build(residual(tmp_path / "net.onnx", batch="N"), tmp_path / "net.engine")


def test_other_dynamic_dimensions_are_refused(world: World, tmp_path: Path) -> None:
    source = residual(tmp_path / "net.onnx")
    model = onnx.load(source)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
    onnx.save(model, source)
    with pytest.raises(DataError, match=r"dynamic shape \[1, 3, H, 12\]"):
        opened().build(source, tmp_path / "net.engine")


def test_dla_falls_back_and_says_so(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    built(tmp_path, "fp16", "dla_core=1")
    assert world.config.DLA_core == 1
    assert world.config.default_device_type.name == "DLA"
    assert "GPU_FALLBACK" in world.flags
    facts = json.loads((tmp_path / "net.engine.build.json").read_text())
    assert {"layer1.0.add", "pool", "flatten", "fc"} <= set(facts["gpu_fallback"])
    assert not {"stem", "layer1.0.conv1"} & set(facts["gpu_fallback"])
    assert "cannot run on the DLA and fall back to the GPU" in caplog.text


def test_calibration_cache_where_the_version_has_calibrators(world: World, tmp_path: Path) -> None:
    cache = tmp_path / "calibration.cache"
    number = {"8.6.1": 8601, "10.0.1": 100001, "10.3.0": 100300, "10.16.1": 101601}.get(world.table, 0)
    cache.write_bytes(f"TRT-{number}-EntropyCalibration2\nimage: 3c010a14\n".encode())
    backend = opened("int8", f"calibration={cache}")
    source = residual(tmp_path / "net.onnx")
    if world.major >= 11:
        with pytest.raises(ConfigError, match="no calibrators any more; quantize the ONNX file instead"):
            backend.build(source, tmp_path / "net.engine")
        return
    backend.build(source, tmp_path / "net.engine")
    calibrator = world.config.int8_calibrator
    assert world.flags == {"TF32", "FP16", "INT8"}
    assert calibrator.read_calibration_cache() == cache.read_bytes()
    assert calibrator.get_batch(["image"]) is None
    cache.write_bytes(b"TRT-7000-EntropyCalibration2\n")
    with pytest.raises(DataError, match=r"'TRT-7000-EntropyCalibration2', TensorRT .* reads 'TRT-"):
        backend.build(source, tmp_path / "net.engine")
    cache.write_bytes(b"something else")
    with pytest.raises(DataError, match="not a TensorRT calibration cache"):
        backend.build(source, tmp_path / "net.engine")


def samples(count: int, size: int = 12) -> list[np.ndarray]:
    random = np.random.default_rng(2)
    return [random.standard_normal((1, 3, size, size)).astype(np.float32) for _ in range(count)]


def fed(feeds: Iterable[Any], batch: int, cache: Path | None = None) -> Any:
    return partial(entropy_calibrator, batches=feeds, batch=batch, cache=cache)


@pytest.mark.parametrize("dimension", [2, "N"], ids=["static", "dynamic"])
def test_the_calibrator_is_fed_while_the_engine_is_built(world: World, dimension: int | str, tmp_path: Path) -> None:
    backend, source = opened("int8", batch=2), residual(tmp_path / "net.onnx", batch=dimension)
    images, cache, out = samples(5), tmp_path / "found.calibration", tmp_path / "net.engine"
    feeds = ({"image": np.concatenate(images[i : i + 2])} for i in range(0, 5, 2))
    if world.major >= 11:
        with pytest.raises(ConfigError, match="no calibrators any more; quantize the ONNX file instead"):
            backend.build(source, out, fed(feeds, 2, cache))  # type: ignore[call-arg]
        return
    engine = backend.build(source, out, fed(feeds, 2, cache))  # type: ignore[call-arg]
    assert world.flags == {"TF32", "FP16", "INT8"}
    np.testing.assert_array_equal(np.concatenate(world.calibrated), np.concatenate([*images, images[4]]))
    assert world.memory == {}
    assert world.calls.count("push") == world.calls.count("pop") == 1
    assert not json.loads((tmp_path / "net.engine.build.json").read_text())["strongly_typed"]
    assert cache.read_bytes().startswith(b"TRT-")
    with backend.open(engine) as session:
        assert session.describe()[0].inputs[0].dtype == "int8"
    backend.build(source, out, fed([], 2, cache))  # type: ignore[call-arg]
    assert len(world.calibrated) == 3, "a second build takes the ranges from the cache"


def interrupted() -> Iterator[dict[str, np.ndarray]]:
    yield {"image": samples(1)[0]}
    raise DataError("image 7 is damaged")


@pytest.mark.parametrize(
    ("feeds", "text"),
    [(interrupted, "image 7 is damaged"), (lambda: [{"x": samples(1)[0]}], r"input 'image'.* are for \['x'\]"),
     (lambda: [{"image": samples(1, size=14)[0]}], r"must be float32\[1, 3, 12, 12\], got float32\[1, 3, 14, 14\]"),
     (lambda: [{"image": samples(1)[0].astype(np.float64)}], "got float64"),
     (list, "no scaling factors detected")],
    ids=["damaged", "other input", "other size", "other type", "none"],
)  # fmt: skip
def test_a_calibration_that_fails_is_no_engine(world: World, feeds: Any, text: str, tmp_path: Path) -> None:
    """TensorRT only prints what a calibrator raises, and would calibrate with the samples that it has so far."""
    if world.major >= 11:
        pytest.skip("no calibrators in TensorRT 11")
    source, cache = residual(tmp_path / "net.onnx"), tmp_path / "found.calibration"
    with pytest.raises(DataError, match=text):
        opened("int8").build(source, tmp_path / "net.engine", fed(feeds(), 1, cache))  # type: ignore[call-arg]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx"], "nothing half-written"
    assert world.memory == {}


def test_what_calibration_samples_are_not_for(world: World, tmp_path: Path) -> None:
    if world.major >= 11:
        pytest.skip("no calibrators in TensorRT 11")
    source, out = residual(tmp_path / "net.onnx"), tmp_path / "net.engine"
    with pytest.raises(ConfigError, match=r"calibration samples are for tensorrt:int8 .* got tensorrt:fp16"):
        opened("fp16").build(source, out, fed([], 1))  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="without a calibration cache, got tensorrt:int8,calibration=x"):
        opened("int8", "calibration=x").build(source, out, fed([], 1))  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="a calibration cache is for int8"):
        opened("fp16", "calibration=x")
    with pytest.raises(DataError, match="holds Q/DQ nodes"):
        opened("int8").build(residual(source, qdq=True), out, fed([], 1))  # type: ignore[call-arg]


def test_build_calibrates_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images through the compiled preprocessing into TensorRT's calibrator; once for a file and its samples."""
    if "PYDEPLOY_TRT_VERSION" in os.environ:
        pytest.skip("needs no real bindings")
    world = machine(monkeypatch, "10.3.0", tmp_path)
    images = np.random.default_rng(3).integers(0, 256, (7, 12, 12, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    manifest = tmp_path / "set.yaml"
    manifest.write_text(
        "source: ./images.npy\ncount: 7\npreprocessing: {mean: [0.5, 0.4, 0.3], std: [0.2, 0.3, 0.4]}\n"
    )
    source, out = residual(tmp_path / "net.onnx", batch=3), tmp_path / "net.engine"
    verb = partial(engine_verbs.build, source, "tensorrt:int8", out, batch=3, threads=0, config=None)
    verb(data=manifest)
    expected = (images / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
    found = np.concatenate(world.calibrated).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found[:7], expected, atol=1e-5)
    assert found.shape == (9, 12, 12, 3)
    (cache,) = tmp_path.glob("net.engine.*.calibration")
    verb(data=manifest)
    assert len(world.calibrated) == 3, "the same file and samples are not calibrated again"
    manifest.write_text(manifest.read_text() + "seed: 1\n")
    verb(data=manifest)
    assert len(world.calibrated) == 6
    assert cache.exists()
    with pytest.raises(ConfigError, match="--config goes with --data"):
        engine_verbs.build(source, "tensorrt:int8", out, batch=3, threads=0, config=Path("x"), data=None)
    with pytest.raises(ConfigError, match="the target is 'onnxruntime'"):
        engine_verbs.build(source, "onnxruntime:fp32", out, batch=3, threads=0, config=None, data=manifest)
    assert "net.engine" in capsys.readouterr().out


def test_progress_is_told_where_the_version_can(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pydeploy.backends.tensorrt.build.PROGRESS_S", 0.0)
    with caplog.at_level(logging.INFO):
        built(tmp_path)
    assert ("TensorRT build: Building engine, 3 of 3" in caplog.text) == (world.major >= 10)


def test_ctrl_c_ends_the_build_cleanly(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if world.major < 10:
        pytest.skip("8.6 has no progress monitor: Ctrl-C acts when the build has returned")
    build = trt_fake.BuilderCore.build_serialized_network

    def stopped(self: Any, *args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return build(self, *args)

    monkeypatch.setattr(trt_fake.BuilderCore, "build_serialized_network", stopped)
    learned: list[Any] = []
    monkeypatch.setattr(trt_fake.ConfigCore, "learn", lambda self: learned.append(self))
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background may ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            built(tmp_path)
        assert learned == [], "the build stopped at its next step"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert not (tmp_path / "net.engine").exists()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        built(tmp_path)
        assert (tmp_path / "net.engine").exists(), "who ignores Ctrl-C is not interrupted by it"
    finally:
        signal.signal(signal.SIGINT, outside)


# ---------------------------------------------------------------- the timing cache


def cache_of(tmp_path: Path) -> Path:
    (found,) = (tmp_path / "cache" / "pydeploy").glob("*.timing")
    return found


def test_builds_share_a_timing_cache(world: World, tmp_path: Path) -> None:
    built(tmp_path)
    first = cache_of(tmp_path).read_bytes()
    built(tmp_path)
    second = cache_of(tmp_path).read_bytes()
    assert second.startswith(first)
    assert len(second) > len(first)
    name = cache_of(tmp_path).name
    assert name.startswith(f"tensorrt-{world.surface.version}-NVIDIA-A100")
    assert name.endswith("-sm80.timing")


def test_what_another_process_learned_meanwhile_is_kept(world: World, tmp_path: Path, monkeypatch: Any) -> None:
    built(tmp_path)
    build = trt_fake.BuilderCore.build_serialized_network

    def meanwhile(self: Any, *args: Any) -> Any:
        path = cache_of(tmp_path)
        path.write_bytes(path.read_bytes() + b"from elsewhere\n")
        return build(self, *args)

    monkeypatch.setattr(trt_fake.BuilderCore, "build_serialized_network", meanwhile)
    built(tmp_path)
    assert b"from elsewhere\n" in cache_of(tmp_path).read_bytes()
    assert cache_of(tmp_path).read_bytes().count(b"build") == 2


@pytest.mark.parametrize("content", [b"trt 1.0\nbuild 0\n", b"\x00garbage"])
def test_a_foreign_timing_cache_is_replaced(
    world: World, content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "mine.timing"
    path.write_bytes(content)
    built(tmp_path, options=f"timing_cache={path}")
    assert "starting a new one" in caplog.text
    assert path.read_bytes().startswith(f"trt {world.surface.version}".encode())


def test_a_timing_cache_that_cannot_be_read_is_replaced(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world.fail.add("cache-garbage")
    path = tmp_path / "mine.timing"
    path.write_bytes(b"garbage")
    built(tmp_path, options=f"timing_cache={path}")
    assert "starting a new one" in caplog.text


def test_an_unwritable_timing_cache_does_not_stop_a_build(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    _, engine = built(tmp_path, options=f"timing_cache={tmp_path / 'file' / 'cache.timing'}")
    assert engine.path.exists()
    assert "cannot be written" in caplog.text


def test_writers_of_a_timing_cache_take_turns(world: World, tmp_path: Path) -> None:
    """Two processes that read, combine and write at once would lose what one of them learned."""
    path = tmp_path / "mine.timing"
    began, options = threading.Event(), f"timing_cache={path}"
    backend, source = opened(options=options), residual(tmp_path / "net.onnx")

    def second() -> None:
        began.set()
        backend.build(source, tmp_path / "net.engine")

    with timing_cache._locked(path):
        writer = threading.Thread(target=second)
        writer.start()
        began.wait(10)
        writer.join(0.3)
        assert writer.is_alive(), "it waits for its turn"
        assert not path.exists()
    writer.join(60)
    assert path.read_bytes().startswith(f"trt {world.surface.version}".encode())


# ---------------------------------------------------------------- engines


def test_engine_record_and_other_targets(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, engine = built(tmp_path, options="sparse")
    loaded = Engine.load(engine.path)
    assert loaded.target == backend.target()
    assert loaded.target.facts["options"] == "sparse"
    assert loaded.target.facts["compute_capability"] == "8.0"
    assert loaded.target.device == "NVIDIA A100-SXM4-40GB"
    assert reopen(loaded.target).target() == loaded.target
    with pytest.raises(Mismatch, match="options: None against 'sparse'"), opened().open(loaded):
        pass
    machine(monkeypatch, world.table, tmp_path, gpu=Driver(name=b"NVIDIA RTX A2000"))
    with pytest.raises(Mismatch, match="device: 'NVIDIA RTX A2000' against 'NVIDIA A100-SXM4-40GB'"):
        reopen(loaded.target).open(loaded).__enter__()


def test_an_engine_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if len(VERSIONS) < 2:
        pytest.skip("needs two versions in one process")
    machine(monkeypatch, "10.3.0", tmp_path)
    _, engine = built(tmp_path)
    machine(monkeypatch, "10.16.1", tmp_path)
    with pytest.raises(Mismatch, match=r"backend_version: '10.16.1.*' against '10.3.0'"), opened().open(engine):
        pass


@pytest.mark.parametrize("damage", [b"", b"\x93" * 40, b'{"version": "1.0"}'])
def test_a_damaged_engine_is_refused(world: World, damage: bytes, tmp_path: Path) -> None:
    backend, engine = built(tmp_path)
    engine.path.write_bytes(damage)
    with pytest.raises(DataError, match="build the engine again"), backend.open(engine):
        pass
    with pytest.raises(DataError, match=r"magicTagRead failed.*build the engine again"):
        backend.open(replace(engine, sha256="")).__enter__()
    assert world.memory == {}, "nothing is left on the device"


def test_device_memory_starts_as_zeros(world: World, tmp_path: Path) -> None:
    backend, engine = built(tmp_path)
    with backend.open(engine):
        assert world.memory
        assert not any(any(content) for content in world.memory.values())


def test_a_full_device_is_one_sentence(world: World, tmp_path: Path) -> None:
    backend, engine = built(tmp_path)
    for failure, text in (
        ("allocate", "no .* left for the engine's inputs"),
        ("context", "open fewer engines at once"),
    ):
        world.fail = {failure}
        with pytest.raises(DataError, match=text):
            backend.open(engine).__enter__()
    assert world.memory == {}
    assert world.calls.count("push") == world.calls.count("pop")


# ---------------------------------------------------------------- run and time


def test_outputs_come_back(world: World, tmp_path: Path) -> None:
    world.numeric = True
    backend, engine = built(tmp_path, batch=2)
    with backend.open(engine) as session:
        feeds = random_feeds(session.inputs)
        outputs = session.run({"image": np.asfortranarray(feeds["image"])})
    (reference,) = ReferenceEvaluator(str(tmp_path / "net.onnx")).run(None, feeds)
    np.testing.assert_allclose(outputs["logits"], reference, rtol=1e-4, atol=1e-5)
    assert world.memory == {}


def test_half_inputs_and_outputs_are_half(world: World, tmp_path: Path) -> None:
    world.numeric = True
    to_half(residual(tmp_path / "net.onnx"), tmp_path / "half.onnx", keep_io=False)
    backend = opened("fp16")
    engine = backend.build(tmp_path / "half.onnx", tmp_path / "net.engine")
    with backend.open(engine) as session:
        assert [spec.dtype for spec in (*session.inputs, *session.outputs)] == ["float16", "float16"]
        feeds = random_feeds(session.inputs)
        found = session.run(feeds)["logits"]
    (reference,) = ReferenceEvaluator(str(tmp_path / "net.onnx")).run(
        None, {"image": feeds["image"].astype(np.float32)}
    )
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, reference, rtol=0.05, atol=0.05)


def test_wrong_feeds_are_refused(world: World, tmp_path: Path) -> None:
    backend, engine = built(tmp_path)
    with backend.open(engine) as session, pytest.raises(DataError, match="image"):
        session.run({"image": np.zeros((1, 3, 12, 12), np.float64)})


def layers_us(engine: Engine) -> list[float]:
    return [layer["us"] for layer in json.loads(engine.path.read_text())["layers"]]


def test_time_is_the_gpus_own(world: World, tmp_path: Path) -> None:
    """With a CUDA graph a launch is cheap, and the next query is queued before the last one ends."""
    backend, engine = built(tmp_path)
    with backend.open(engine) as session:
        samples = session.time(random_feeds(session.inputs), 6)
        condition = session.condition()
    np.testing.assert_allclose(samples[1:], sum(layers_us(engine)), rtol=1e-9)
    assert condition["cuda_graph"] == 1.0
    assert condition["unstable"] == 0.0
    assert condition["enqueue_bound"] == 0.0


def test_two_queries_are_in_flight(world: World, tmp_path: Path) -> None:
    """The host enqueues the next query before it waits for the one before; only so are launches hidden."""
    backend, engine = built(tmp_path)
    events: list[str] = []
    with backend.open(engine) as session:
        stream = session._stream
        feeds = random_feeds(session.inputs)
        session.time(feeds, 1)
        launch, elapsed = session._launch, stream.elapsed_us
        session._launch = lambda: events.append("launch") or launch()
        stream.elapsed_us = lambda *pair: events.append("wait") or elapsed(*pair)
        session.time(feeds, 4)
    assert events == ["launch", "launch", "wait", "launch", "wait", "launch", "wait", "wait"]


def test_without_graphs_it_still_measures(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    monkeypatch.setitem(sys.modules, "cuda.cuda", None)
    backend, engine = built(tmp_path)
    with caplog.at_level(logging.INFO), backend.open(engine) as session:
        samples = session.time(random_feeds(session.inputs), 5)
        assert session.condition()["cuda_graph"] == 0.0
    assert samples.shape == (5,)
    assert "no CUDA graphs without the package cuda-python" in caplog.text


@pytest.mark.parametrize("failure", ["begin capture", "capture", "enqueue in capture", "instantiate"])
def test_an_engine_that_cannot_be_captured_runs_without_a_graph(
    world: World, failure: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world.fail.add(failure)
    backend, engine = built(tmp_path)
    with backend.open(engine) as session:
        samples = session.time(random_feeds(session.inputs), 5)
        condition = session.condition()
    assert (samples > 0).all()
    assert condition["cuda_graph"] == 0.0
    assert "latencies include launching" in caplog.text


@pytest.mark.parametrize("failure", ["enqueue", "graph-launch"])
def test_a_query_that_fails_is_an_error(world: World, failure: str, tmp_path: Path) -> None:
    backend, engine = built(tmp_path)
    with backend.open(engine) as session:
        world.fail.add(failure)
        with pytest.raises(DataError, match="TensorRT cannot run"):
            session.time(random_feeds(session.inputs), 3)


@pytest.mark.parametrize("run", ["run", "layers"])
def test_a_plain_query_that_fails_is_an_error(world: World, run: str, tmp_path: Path) -> None:
    """Outside of the CUDA graph, which goes on working here: a single run, and the profiled ones."""
    backend, engine = built(tmp_path)
    with backend.open(engine) as session:
        feeds = random_feeds(session.inputs)
        session.time(feeds, 2)
        world.fail.add("enqueue")
        session.time(feeds, 2)
        with pytest.raises(DataError, match=r"TensorRT cannot run .*enqueueV3: Error Code 1: Cuda Runtime"):
            session.run(feeds) if run == "run" else session.layers(feeds, 2)


def test_graphs_come_from_cuda_python_by_its_old_name_too(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.cuda", sys.modules["cuda.bindings.driver"])
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    backend, engine = built(tmp_path)
    with backend.open(engine) as session:
        session.time(random_feeds(session.inputs), 2)
        assert session.condition()["cuda_graph"] == 1.0


def test_unstable_clocks_are_flagged(world: World, tmp_path: Path) -> None:
    backend, engine = built(tmp_path)
    with backend.open(engine) as session:
        world.noise = 0.1
        session.time(random_feeds(session.inputs), 40)
        condition = session.condition()
    assert condition["variation"] > 0.025
    assert condition["unstable"] == 1.0


def test_the_first_run_of_a_turn_says_nothing_about_clocks() -> None:
    """It finds the caches full of other data."""
    condition = Condition(types.SimpleNamespace(read=dict))  # type: ignore[arg-type]
    for _ in range(3):
        condition.add([100.0, 10.0, 10.0, 10.0], [50.0, 1.0, 1.0, 1.0])
    found = condition.summary()
    assert (found["variation"], found["unstable"], found["enqueue_share"]) == (0.0, 0.0, 0.1)


class Nvml(types.ModuleType):
    """pynvml of a machine where CUDA's first GPU is another one of NVML's. Only reading is possible."""

    def __init__(self, reasons: int = 0) -> None:
        super().__init__("pynvml")
        self.reasons, self.clocks = reasons, iter([1410, 1400, 1380] + [1400] * 1000)

    def nvmlInit(self) -> None:  # noqa: N802
        """Nothing to start."""

    def nvmlDeviceGetHandleByPciBusId(self, pciBusId: str) -> str:  # noqa: N802
        assert pciBusId == "0000:07:00.0"
        return "second"

    def nvmlDeviceGetClockInfo(self, handle: str, type: int) -> int:  # noqa: A002, N802
        return next(self.clocks) if type == 1 else 1215

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:  # noqa: N802
        raise RuntimeError("NVMLError_NotSupported")

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:  # noqa: N802
        assert handle == "second"
        return 250_500

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:  # noqa: N802
        return self.reasons


@pytest.mark.parametrize(("reasons", "lowered"), [(0x1, ""), (0x4, "sw_power_cap"), (0x20 | 0x1, "sw_thermal")])
def test_clocks_and_power_are_recorded(
    reasons: int, lowered: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steady run times do not hide that the clocks were lowered all the time; an idle GPU is no reason."""
    machine(monkeypatch, NEWEST, tmp_path)
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(reasons))
    monkeypatch.setattr("pydeploy.profiling.profile.Watch", unwatched)  # other load on the computer that runs this test
    backend, engine = built(tmp_path)
    found = profile(backend, engine, RESIDUAL_OPS, rounds=4, runs=5)
    facts = found.condition
    assert (facts["sm_clock_mhz_min"], facts["sm_clock_mhz_max"], facts["memory_clock_mhz"]) == (1380, 1410, 1215)
    assert facts["power_w"] == 250.5
    assert "temperature_c" not in facts
    assert facts["unstable"] == float(bool(lowered))
    assert found.whole.disturbed == bool(lowered)
    assert [name for name in facts if name.startswith("clocks_lowered")] == [f"clocks_lowered_by_{lowered}"] * bool(
        lowered
    )


def test_enqueue_bound_runs_are_flagged(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world.fail.add("capture")
    monkeypatch.setattr(trt_fake, "LAUNCH_US", 50.0)
    backend, engine = built(tmp_path)
    with backend.open(engine) as session:
        session.time(random_feeds(session.inputs), 5)
        assert session.condition()["enqueue_bound"] == 1.0


def test_layers_are_the_operators_without_the_profilers_share(world: World, tmp_path: Path) -> None:
    backend, engine = built(tmp_path)
    with backend.open(engine) as session:
        layers = session.layers(random_feeds(session.inputs), 4)
    expected = layers_us(engine)
    assert PROFILE_US > 0
    assert {layer.samples_us.shape for layer in layers} == {(4,)}, "warm-up runs are left out"
    np.testing.assert_allclose([np.median(layer.samples_us) for layer in layers], expected, rtol=1e-6)
    assert [layer.nodes[0] for layer in layers] == list(RESIDUAL_OPS)
    assert layers[0].nodes == ("stem", "stem.relu")
    assert set(attribute(layers, RESIDUAL_OPS)) == set(RESIDUAL_OPS)


@pytest.mark.parametrize(
    ("precision", "multiple", "dtype"), [("fp32", 1, "float32"), ("fp16", 8, "float16"), ("int8", 32, "int8")]
)
def test_padding_is_read_from_the_formats(
    world: World, precision: str, multiple: int, dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backend, engine = built(tmp_path, precision)
    with backend.open(engine) as session:
        first = session.describe()[0]
        layers = session.layers(random_feeds(session.inputs), 2)
    assert (first.padding, first.inputs[0].dtype) == ((multiple, multiple), dtype)
    assert first.tactic == "sm80_xmma_fprop"
    assert paddings(layers, RESIDUAL_OPS) == dict.fromkeys(RESIDUAL_OPS, (multiple, multiple))
    found = profile(backend, engine, RESIDUAL_OPS, rounds=1, runs=2)
    assert found.padding == paddings(layers, RESIDUAL_OPS)
    assert Profile.from_json(json.loads(json.dumps(found.to_json()))) == found
    show_profile(found)
    shown = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert shown["stem"].endswith(f"x{multiple} in, x{multiple} out")


def test_profile_tells_the_condition(world: World, tmp_path: Path) -> None:
    backend, engine = built(tmp_path)
    found = profile(backend, engine, RESIDUAL_OPS, rounds=2, runs=5)
    assert set(found.layers) == set(RESIDUAL_OPS)
    assert found.condition["cuda_graph"] == 1.0
    assert found.target.measured


# ---------------------------------------------------------------- settings and refusals


def test_options_are_checked(world: World) -> None:
    with pytest.raises(ConfigError, match=r"no option 'sparze' \(did you mean 'sparse'"):
        opened(options="sparze")
    with pytest.raises(ConfigError, match="'dla_core' is a number, got 'x'"):
        opened(options="dla_core=x")
    with pytest.raises(ConfigError, match="0 to 5"):
        opened(options="optimization_level=9")
    with pytest.raises(ConfigError, match="'sparse' is true or false"):
        opened(options="sparse=maybe")


@pytest.mark.parametrize(
    ("text", "reason"),
    [("workspace_mib=-1", "workspace_mib must be 0 or more"), ("dla_core=-2", "dla_core -1 or more"), ("optimization_level=-1", "0 to 5")],
)  # fmt: skip
def test_options_have_limits(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Options.parse(text)


def test_the_timing_cache_is_no_part_of_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine is the same one wherever its kernels' timings were kept."""
    machine(monkeypatch, NEWEST, tmp_path)
    one, other = opened(options="sparse,timing_cache=a.timing"), opened(options="sparse,timing_cache=b.timing")
    assert one.target() == other.target()
    assert one.target().facts["options"] == "sparse"


def test_a_timing_cache_belongs_to_a_version_and_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    facts = [
        ("10.3.0", "Orin (nvgpu)", (8, 7)),
        ("10.3.1", "Orin (nvgpu)", (8, 7)),
        ("10.3.0", "Orin NX", (8, 7)),
        ("10.3.0", "Orin NX", (8, 6)),
    ]
    found = [Options().cache_file(*fact) for fact in facts]
    assert len(set(found)) == len(facts)
    assert found[0] == tmp_path / ".cache" / "pydeploy" / "tensorrt-10.3.0-Orin--nvgpu--sm87.timing"


def test_align_starts_at_the_tensor_cores_multiple(world: World) -> None:
    assert [opened(p).align for p in ("fp32", "tf32", "fp16", "int8")] == [4, 4, 8, 32]
    assert Options().align("bf16") == 8
    assert opened("fp16", "sparse").align == 16
    assert opened("int8", "sparse").align == 32


def test_threads_and_precisions_are_checked(world: World) -> None:
    with pytest.raises(BackendUnavailable, match="one stream"):
        open_backend("tensorrt", threads=2)
    with pytest.raises(BackendUnavailable, match=r"fp32.*'fp4' was asked for"):
        opened("fp4")


@pytest.mark.parametrize(
    ("gpu", "text"),
    [(Driver(init=100), "finds no GPU"), (Driver(count=0), "finds no GPU"), (Driver(init=803), "cuInit returned 803")],
)
def test_without_a_gpu_tensorrt_is_not_touched(
    gpu: Driver, text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = machine(monkeypatch, NEWEST, tmp_path, gpu=gpu)
    with pytest.raises(BackendUnavailable, match=text):
        opened()
    assert world.calls == []


def test_without_a_driver_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine(monkeypatch, NEWEST, tmp_path)
    monkeypatch.setattr(driver, "load_driver", lambda: None)
    with pytest.raises(BackendUnavailable, match=r"no NVIDIA driver on this machine") as caught:
        opened()
    assert "\n" not in str(caught.value)


def test_missing_packages_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine(monkeypatch, NEWEST, tmp_path)
    backend, engine = built(tmp_path)
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'pydeploy-hil\[tensorrt\]'"), backend.open(engine):
        pass
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendUnavailable, match=r"needs the package 'tensorrt'.*JetPack"):
        opened()


def test_bindings_without_their_libraries_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They raise ImportError, not ModuleNotFoundError."""
    machine(monkeypatch, NEWEST, tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt")
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackendUnavailable, match=r"needs the package 'tensorrt' \(libnvinfer.so.11: cannot open"):
        opened()
    assert checkup()["bindings"].startswith("missing: backend 'tensorrt' needs the package")


def test_old_versions_and_gpus_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine(monkeypatch, NEWEST, tmp_path)
    monkeypatch.setattr(sys.modules["tensorrt"], "__version__", "8.5.2")
    with pytest.raises(BackendUnavailable, match=r"8\.5\.2 is too old"):
        opened()
    monkeypatch.undo()
    turing = Driver()
    turing.cuDeviceGetAttribute = lambda value, number, device: (
        setattr(value._obj, "value", {75: 7, 76: 5}.get(number, 1)) or 0
    )  # type: ignore[method-assign]
    machine(monkeypatch, NEWEST, tmp_path, gpu=turing)
    with pytest.raises(BackendUnavailable, match=r"compute capability 8\.0"):
        opened("tf32")


def test_the_checkup_names_what_is_there(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pydeploy.backends.tensorrt.trtexec.PLACES", ())
    found = checkup()
    assert found["GPU"] == "NVIDIA A100-SXM4-40GB, compute capability 8.0, 40 GiB, driver for CUDA 12.4"
    assert found["bindings"].startswith(f"TensorRT {world.surface.version}, precision ")
    assert ("by flags" in found["bindings"]) == (not typed_by_default(world))
    assert "not found" in found["trtexec"]


def test_a_pycuda_without_metadata_is_there_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where it was compiled in place."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())

    def lost(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", lost)
    assert checkup()["pycuda"] == "pycuda is there"


def test_the_checkup_says_how_to_get_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "load_driver", lambda: None)
    driver.find_gpu.cache_clear()
    for name in ("tensorrt", "pycuda", "pynvml"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = checkup()
    assert all(found[part].startswith("missing: ") for part in ("GPU", "bindings", "pycuda", "CUDA graphs", "NVML"))
    assert "pip install pycuda" in found["pycuda"]
    assert "install the driver" in found["GPU"]
