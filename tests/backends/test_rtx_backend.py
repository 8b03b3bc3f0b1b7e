"""The backend `tensorrt-rtx`: building with NVIDIA's own builder where it is installed, running on a fake that has only real names.

The fake of the runtime side is held to the tables of two versions (`trt_surface`); `make trt-contract` holds them to the real ones.
"""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch  # noqa: F401  # meets the real cuda.bindings, before the fake stands there

import cuda_fake
from onnx_nets import residual
from pydeploy import files
from pydeploy.backends.base import Engine, open_backend, reopen
from pydeploy.backends.tensorrt import compat, driver
from pydeploy.errors import BackendUnavailable, ConfigError, DataError, Mismatch
from pydeploy.profiling.profile import profile, random_feeds
from rtx_builder import module
from test_cli import fails, pydeploy
from trt_bench import RTX_VERSIONS, machine
from trt_fake import World


@pytest.fixture(params=RTX_VERSIONS)
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[World]:
    """A machine with one GPU of compute capability 8.0."""
    yield machine(monkeypatch, request.param, tmp_path)
    driver.find_gpu.cache_clear()


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without a driver."""
    if "PYDEPLOY_TRT_VERSION" in os.environ:
        pytest.skip("make trt-contract: the bindings alone build nothing")
    module()
    monkeypatch.setattr(driver, "load_driver", lambda: None)
    driver.find_gpu.cache_clear()
    yield
    driver.find_gpu.cache_clear()


# ---------------------------------------------------------------- on the fake


def built(world: World, tmp_path: Path, precision: str = "fp16", **choices: Any) -> tuple[Any, Engine]:
    backend = open_backend("tensorrt-rtx", precision=precision, **choices)
    return backend, backend.build(residual(tmp_path / "net.onnx"), tmp_path / "net.engine")


def test_runs_and_times(world: World, tmp_path: Path) -> None:
    world.numeric = True
    backend, engine = built(world, tmp_path, "fp32")
    with backend.open(engine) as session:
        feeds = random_feeds(session.inputs)
        mine = session.run(feeds)["logits"]
        assert session.time(feeds, 5).shape == (5,)
        layers = session.layers(feeds, 3)
    exact = open_backend("onnxruntime", threads=1)
    with exact.open(exact.build(tmp_path / "net.onnx", tmp_path / "ort.engine")) as other:
        np.testing.assert_allclose(mine, other.run(feeds)["logits"], atol=1e-5)
    assert {name for layer in layers for name in layer.nodes} >= {"stem", "layer1.0.conv1"}
    assert not world.memory, "everything on the device was freed"
    assert world.calls.count("push") == world.calls.count("pop") == world.calls.count("release")


def test_kernels_are_compiled_once_before_any_timing_and_kept(world: World, tmp_path: Path) -> None:
    backend, engine = built(world, tmp_path)
    kernels = tmp_path / "net.engine.kernels"
    for compiled in (1, 1):
        before = world.runs
        with backend.open(engine) as session:
            session.time(random_feeds(session.inputs), 4)
            assert session.condition()["compile_s"] >= 0
            assert session.condition()["cuda_graph"] == 1
        assert world.compiled == compiled
        assert world.runs - before >= 4 + 3, "the first run and those that capture graphs are not among the timed ones"
    assert kernels.read_bytes() == b"kernels of the fake"
    found = profile(backend, engine, ["stem"], rounds=1, runs=2)
    assert "compile_s" in found.condition


def test_a_place_that_cannot_be_written_costs_time_only(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backend, engine = built(world, tmp_path)

    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with backend.open(engine) as session:
        session.time(random_feeds(session.inputs), 1)
    assert "kernels are compiled again next time" in caplog.text
    with pytest.raises(DataError, match="No space left"):
        backend.build(tmp_path / "net.onnx", tmp_path / "other.engine")
    assert not list(tmp_path.glob("other*"))


@pytest.mark.parametrize(("bits", "said"), [(1, "version mismatch"), (2 + 4, "unsupported cc, old cuda driver")])
def test_what_the_runtime_refuses_is_one_sentence(world: World, tmp_path: Path, bits: int, said: str) -> None:
    backend, engine = built(world, tmp_path)
    world.validity = ("INVALID", bits)
    with pytest.raises(Mismatch, match=said), backend.open(engine):
        pass
    assert not world.memory
    world.validity = ("SUBOPTIMAL", 0)
    with backend.open(engine):
        pass


def test_engines_for_others_are_refused_by_the_fact(world: World, tmp_path: Path) -> None:
    backend, engine = built(world, tmp_path)
    old = replace(engine, target=replace(engine.target, backend_version="1.2.0.54"))
    with (
        pytest.raises(Mismatch, match=r"built by TensorRT for RTX 1\.2\.0\.54, this is 1\.\d.*build it again"),
        backend.open(old),
    ):
        pass
    with pytest.raises(Mismatch, match="precision: 'fp32' against 'fp16'"), open_backend("tensorrt-rtx").open(engine):
        pass
    other = open_backend("tensorrt-rtx", precision="fp16", options="gpus=sm86+sm89")
    apart = other.build(tmp_path / "net.onnx", tmp_path / "apart.engine")
    with (
        pytest.raises(Mismatch, match=r"built for sm86, sm89, this GPU is sm80; build it again with --for sm80"),
        other.open(apart),
    ):
        pass


def test_an_engine_built_without_a_gpu_runs_on_one(world: World, tmp_path: Path) -> None:
    """Its record names no device; the profile names the one that it ran on."""
    backend, _ = built(world, tmp_path)
    facts = json.loads((tmp_path / "net.engine.json").read_text())
    facts["target"] |= {"device": "any GPU of sm80, sm86", "facts": {}}
    (tmp_path / "net.engine.json").write_text(json.dumps(facts))
    there = Engine.load(tmp_path / "net.engine")
    with reopen(there.target).open(there) as session:
        session.time(random_feeds(session.inputs), 2)
    assert profile(backend, there, ["stem"], rounds=1, runs=2).target.device == "NVIDIA A100-SXM4-40GB"


def test_open_batch(world: World, tmp_path: Path) -> None:
    backend = open_backend("tensorrt-rtx", precision="fp16", batch=4)
    engine = backend.build(residual(tmp_path / "net.onnx", batch="n"), tmp_path / "net.engine")
    with backend.open(engine) as session:
        assert session.inputs[0].shape[0] == 4


@pytest.mark.parametrize(
    ("fail", "error", "text"),
    [
        ("allocate", DataError, "MiB left"),
        ("context", DataError, "no memory left for another context"),
        ("enqueue", DataError, "cannot run"),
        ("cuStreamCreate", DataError, "refuses cuStreamCreate"),
    ],
)
def test_failures_of_the_device(world: World, tmp_path: Path, fail: str, error: type[Exception], text: str) -> None:
    backend, engine = built(world, tmp_path)
    world.fail.add(fail)
    with pytest.raises(error, match=text), backend.open(engine) as session:
        session.time(random_feeds(session.inputs), 1)


@pytest.mark.parametrize(
    ("options", "built_for"),
    [
        ("", {"SM80", "SM86", "SM89", "SM120"}),
        ("gpus=sm75", {"SM75"}),
        ("gpus=SM89+sm80+sm89", {"SM89", "SM80"}),
        ("gpus=current", {"CURRENT"}),
    ],
)
def test_what_it_is_built_for(world: World, tmp_path: Path, options: str, built_for: set[str]) -> None:
    built(world, tmp_path, options=options)
    assert set(world.gpus) - {"SM121"} == built_for


def test_options(world: World, tmp_path: Path) -> None:
    backend, engine = built(world, tmp_path, options="sparse,workspace_mib=64,gpus=sm80")
    assert "SPARSE_WEIGHTS" in world.flags
    assert engine.target.facts["options"] == "gpus=sm80,sparse,workspace_mib=64"
    assert reopen(engine.target).target() == backend.target()
    assert not any("timing" in call for call in world.calls), "kernels are not timed at the build"
    assert (backend.align, open_backend("tensorrt-rtx", precision="int8").align) == (16, 32)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ("gpus=sm87", ConfigError, r"builds for sm75, sm80, sm86, sm89, sm120.* not for 'sm87'"),
        ("gpus=current+sm80", ConfigError, "stands alone"),
        ("gpu=sm80", ConfigError, "did you mean 'gpus'"),
        ("dla_core=0", ConfigError, "has no option 'dla_core'"),
        ("workspace_mib=-1", ConfigError, "must be 0 or more"),
    ],
)
def test_wrong_options(world: World, options: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        open_backend("tensorrt-rtx", precision="fp16", options=options)


def test_bf16_on_turing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Turing(cuda_fake.Driver):
        def cuDeviceGetAttribute(self, value: Any, number: int, device: Any) -> int:  # noqa: N802
            value._obj.value = {16: 46, 75: 7, 76: 5, 18: 0}[number]
            return 0

    machine(monkeypatch, RTX_VERSIONS[-1], tmp_path, gpu=Turing())
    with pytest.raises(BackendUnavailable, match=r"bf16 needs compute capability 8\.0"):
        open_backend("tensorrt-rtx", precision="bf16")
    driver.find_gpu.cache_clear()


# ---------------------------------------------------------------- the real builder, without a GPU


def test_from_a_file_to_an_engine(alone: None, tmp_path: Path) -> None:
    net, qdq = residual(tmp_path / "net.onnx"), residual(tmp_path / "qdq.onnx", qdq=True)
    for precision, file in {"fp32": net, "tf32": net, "fp16": net, "bf16": net, "int8": qdq}.items():
        out = tmp_path / f"{precision}.engine"
        done = pydeploy("build", file, "--target", f"tensorrt-rtx:{precision}", "--for", "sm86,sm89", "--out", out)
        assert done.returncode == 0, done.stderr
        assert "any GPU of sm86, sm89 / tensorrt-rtx 1." in done.stdout
        assert out.read_bytes()[:4] == b"vtrt"
        assert json.loads((tmp_path / f"{precision}.engine.build.json").read_text())["gpus"] == ["sm86", "sm89"]
    fails(pydeploy("profile", tmp_path / "fp16.engine"), "no NVIDIA driver on this machine")


def test_what_cannot_be_built_is_one_message_and_leaves_nothing(alone: None, tmp_path: Path) -> None:
    net, out = residual(tmp_path / "net.onnx"), tmp_path / "wrong.engine"
    model = onnx.load(residual(tmp_path / "qdq.onnx", qdq=True))
    next(tensor for tensor in model.graph.initializer if tensor.name == "act_zero_0").CopyFrom(
        onnx.numpy_helper.from_array(np.array(3, np.int8), "act_zero_0")
    )
    onnx.save(model, tmp_path / "shifted.onnx")

    def fail(file: Path, target: str, text: str, *more: str) -> None:
        fails(pydeploy("build", file, "--target", target, "--out", out, *more), text)
        assert not list(tmp_path.glob("wrong*"))

    fail(tmp_path / "shifted.onnx", "tensorrt-rtx:int8", "node 'image_Q' (QuantizeLinear)")
    fail(net, "tensorrt-rtx:int8", "holds no Q/DQ nodes")
    fail(net, "tensorrt-rtx:fp16", "not for 'sm90'", "--for", "sm90")
    fail(net, "tensorrt-rtx:bf16", "leave sm75 out (--for)", "--for", "sm75,sm80")
    fail(net, "tensorrt-rtx:fp16", "an engine for the current GPU needs it", "--for", "current")
    fail(net, "null:fp32", "has no options", "--for", "sm80")


def test_every_node_that_is_refused_is_named(alone: None, tmp_path: Path) -> None:
    """NVIDIA's parser stops at the first one; the error says who names the others."""
    model, file = onnx.load(residual(tmp_path / "qdq.onnx", qdq=True)), tmp_path / "shifted.onnx"
    pairs = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    for node in (pairs[0], pairs[2]):
        node.input[2] = f"{node.name}.shift"
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(3, np.int8), node.input[2]))
    onnx.save(model, file)
    done = pydeploy("build", file, "--target", "tensorrt-rtx:int8", "--out", tmp_path / "wrong.engine")
    fails(done, f"node '{pairs[0].name}' (QuantizeLinear): Assertion failed: shiftIsAllZeros")
    fails(done, f"all are named by 'pydeploy lint {file} --style tensorrt-rtx'")
    assert not list(tmp_path.glob("wrong*"))
    said = pydeploy("lint", file, "--style", "tensorrt-rtx")
    assert said.returncode == 1
    for node in (pairs[0], pairs[2]):
        assert node.name in said.stdout


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As a disk that is full: the system refuses to write more into any file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_space_for_the_engine_is_one_sentence(alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lay there stays as it was; without space for the notes beside it the engine goes as well."""
    net, out = residual(tmp_path / "net.onnx"), tmp_path / "made" / "net.engine"
    command = ("build", net, "--target", "tensorrt-rtx:fp32", "--for", "sm86", "--out", out)
    with files_of_at_most(4096):
        done = pydeploy(*command)
    fails(done, f"cannot write {out}: ")
    assert "choose a writable folder with free space" in done.stderr or "nothing was changed" in done.stderr
    assert not list(out.parent.iterdir())
    assert pydeploy(*command).returncode == 0
    before = {path.name: path.read_bytes() for path in out.parent.iterdir()}
    with files_of_at_most(4096):
        fails(pydeploy(*command), "cannot write")
    assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == before

    def full(path: Path, _data: object) -> None:
        raise DataError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr("pydeploy.backends.tensorrt.build.write_json", full)
    fails(pydeploy(*command), "net.engine.build.json: No space left")
    assert not out.exists()


def test_an_engine_of_another_version_is_refused_before_any_driver_is_asked(alone: None, tmp_path: Path) -> None:
    net, out = residual(tmp_path / "net.onnx"), tmp_path / "net.engine"
    assert pydeploy("build", net, "--target", "tensorrt-rtx:fp32", "--for", "sm86", "--out", out).returncode == 0
    record = tmp_path / "net.engine.json"
    facts = json.loads(record.read_text())
    facts["target"]["backend_version"] = "1.2.0.54"
    record.write_text(json.dumps(facts))
    fails(pydeploy("profile", out), "was built by TensorRT for RTX 1.2.0.54, this is 1.")


def test_a_driver_that_is_too_old_builds_but_does_not_run(
    alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU whose driver supports CUDA 12.4; the bindings are built with CUDA 13."""
    monkeypatch.setattr(driver, "load_driver", cuda_fake.Driver)
    driver.find_gpu.cache_clear()
    net, out = residual(tmp_path / "net.onnx"), tmp_path / "net.engine"
    assert compat.cuda_of(module()) == 13
    assert pydeploy("build", net, "--target", "tensorrt-rtx:fp16", "--for", "sm80", "--out", out).returncode == 0
    why = (
        f"the NVIDIA driver supports CUDA up to 12.4, and tensorrt-rtx {module().__version__} is built with CUDA 13: update "
        "the driver to release 580 or newer, or pip install tensorrt-rtx-cu12 in its place"
    )
    fails(pydeploy("profile", out), why)
    said = json.loads(pydeploy("doctor", "--json").stdout)
    assert said["tensorrt-rtx"]["bindings"] == f"missing: {why}"


@pytest.mark.parametrize(("packages", "driver_for", "fits"), [
    ((), "11.4", True), (("tensorrt_cu13",), "13.0", True), (("tensorrt_cu13_libs", "tensorrt_cu13_bindings"), "12.9", False),
    (("tensorrt_cu12",), "12.0", True), (("tensorrt_cu12",), "13.1", True), (("tensorrt_cu12",), "11.8", False),
    (("tensorrt_cu12", "tensorrt_cu13"), "12.4", True), (("tensorrt_rtx_cu13",), "12.4", True),
])  # fmt: skip
def test_which_driver_fits_is_read_off_the_packages(
    packages: tuple[str, ...], driver_for: str, fits: bool, tmp_path: Path
) -> None:
    """Within one first number every driver runs every library (CUDA's minor version compatibility)."""
    for name in packages:
        (tmp_path / f"{name}-11.4.0.106.dist-info").mkdir()
    trt = ModuleType("tensorrt")
    trt.__file__, trt.__version__ = str(tmp_path / "tensorrt" / "__init__.py"), "11.4.0"  # type: ignore[attr-defined]
    if fits:
        compat.check_driver(trt, driver_for)
    else:
        with pytest.raises(
            BackendUnavailable, match=rf"up to {driver_for}, and tensorrt 11\.4\.0 is built with CUDA 1"
        ):
            compat.check_driver(trt, driver_for)


def test_probes_are_built_ahead(alone: None, tmp_path: Path) -> None:
    shape = ("--input", "1x3x16x16", "--points", 2, "--limit", 2)
    done = pydeploy("table", "probes", "pydeploy:resnet8", *shape, "--target", "tensorrt-rtx:int8", "--engines", "--for", "sm86",
                    "--out", tmp_path / "probes")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "3 engines for any GPU of sm86" in done.stdout
    engines = sorted((tmp_path / "probes" / "engines").glob("*.engine"))
    assert [Engine.load(path).target.precision for path in engines] == ["int8"] * 3
    fails(pydeploy("table", "measure", "--onnx", tmp_path / "probes", "--target", "tensorrt-rtx:int8", "--db", tmp_path / "t.sqlite"),
          "no NVIDIA driver")  # fmt: skip


def test_doctor_says_that_it_builds(alone: None) -> None:
    said = json.loads(pydeploy("doctor", "--json").stdout)
    assert said["backend"]["tensorrt-rtx"].startswith(
        "builds fp32, bf16, fp16, int8; cannot run engines: no NVIDIA driver"
    )
    assert "also without a GPU" in said["tensorrt-rtx"]["bindings"]


def test_engines_built_ahead_are_measured(world: World, tmp_path: Path) -> None:
    """On the board nothing is built any more."""
    world.numeric = True
    shape = ("--input", "1x3x16x16", "--points", 2, "--limit", 2)
    target = ("--target", "tensorrt-rtx:fp16")
    done = pydeploy("table", "probes", "pydeploy:resnet8", *shape, *target, "--engines", "--out", tmp_path / "probes")
    assert done.returncode == 0, done.stderr
    world.fail.add("build")
    quick = ("--rounds", 1, "--runs", 1, "--limit", 2, "--db", tmp_path / "t.sqlite")
    done = pydeploy("table", "measure", "--onnx", tmp_path / "probes", *target, *quick)
    assert done.returncode == 0, done.stderr
    assert "2 networks measured" in done.stdout
