"""What quantization reads and normalizes: batch normalization, constants, external data, shapes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import quant_nets as nets
from pydeploy.errors import ConfigError, DataError, Mismatch
from pydeploy.onnxfile.load import files_hash, read_float_model, read_model
from pydeploy.quant.calibrate import calibrate
from pydeploy.quant.lint import lint
from pydeploy.quant.qdq import quantize
from pydeploy.quant.styles import STYLES


def normalization(name: str, source: str, target: str, width: int) -> tuple[onnx.NodeProto, dict[str, nets.Array]]:
    rng = np.random.default_rng(width)
    values = {f"{name}.scale": rng.uniform(0.5, 2, width), f"{name}.shift": rng.normal(size=width),
              f"{name}.mean": rng.normal(size=width), f"{name}.var": rng.uniform(0.1, 3, width)}  # fmt: skip
    stored = {key: value.astype(np.float32) for key, value in values.items()}
    return nets.NODE("BatchNormalization", [source, *stored], [target], name=name, epsilon=1e-3), stored


def with_normalization(path: Path) -> Path:
    """Normalization behind a convolution with bias, one without, a transposed one, a Gemm, and one that cannot fold."""
    rng = np.random.default_rng(5)
    up = {"up.weight": rng.normal(size=(16, 16, 2, 2)).astype(np.float32) / 8}
    parts = [nets.conv("a", "x", "a0", 3, 16), normalization("bn.a", "a0", "a1", 16), nets.NODE("Relu", ["a1"], ["a2"], name="relu"),
             nets.conv("b", "a2", "b0", 16, 16, bias=False), normalization("bn.b", "b0", "b1", 16),
             (nets.NODE("ConvTranspose", ["b1", "up.weight"], ["u0"], name="up", strides=[2, 2]), up),
             normalization("bn.u", "u0", "u1", 16),
             nets.conv("c", "u1", "c0", 16, 16), normalization("bn.c", "c0", "c1", 16),
             nets.NODE("Add", ["c0", "c1"], ["d"], name="add"),  # a second reader: bn.c stays
             nets.NODE("GlobalAveragePool", ["d"], ["p"], name="pool"), nets.NODE("Flatten", ["p"], ["f"], name="flat"),
             nets.gemm("fc", "f", "y", 16, 10)]  # fmt: skip
    return nets.save(path, parts, {"x": [1, 3, 8, 8]}, ["y"])


@pytest.mark.parametrize("style", STYLES)
def test_normalization_is_folded_where_only_it_reads_the_layer(tmp_path: Path, style: str) -> None:
    path = with_normalization(tmp_path / "net.onnx")
    feeds = nets.random_feeds(path)
    ranges = calibrate(path, feeds, observer="minmax")
    out = tmp_path / "q.onnx"
    quantize(path, ranges, out, style=style)
    norms = [node.name for node in onnx.load(out).graph.node if node.op_type == "BatchNormalization"]
    assert norms == ["bn.c"]
    original = nets.run(path, feeds)
    assert np.abs(nets.run(out, feeds) - original).max() < 0.06 * np.abs(original).max()


def test_folded_weights_equal_numpy(tmp_path: Path) -> None:
    """Scales follow the folded weights: ``max|w * gamma / sqrt(var + eps)| / 127`` per output channel."""
    path = with_normalization(tmp_path / "net.onnx")
    out = tmp_path / "q.onnx"
    ranges = replace(calibrate(path, nets.random_feeds(path), observer="minmax"), means={})  # no correction of biases
    quantize(path, ranges, out, style="tensorrt")
    before, after = ({w.name: numpy_helper.to_array(w) for w in onnx.load(p).graph.initializer} for p in (path, out))
    for layer, norm, axes in (("a", "bn.a", (1, 2, 3)), ("up", "bn.u", (0, 2, 3))):
        factor = before[f"{norm}.scale"] / np.sqrt(before[f"{norm}.var"] + 1e-3)
        largest = np.abs(before[f"{layer}.weight"]).max(axes) * np.abs(factor)
        assert after[f"{layer}.weight_scale"] == pytest.approx(largest / 127, rel=1e-5)
        bias = before.get(f"{layer}.bias", 0.0)
        expected = (bias - before[f"{norm}.mean"]) * factor + before[f"{norm}.shift"]
        assert after[f"{layer}_folded_bias"] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_one_weight_under_two_normalizations(tmp_path: Path) -> None:
    first, weights = nets.conv("a", "x", "a0", 16, 16, bias=False)
    second = nets.NODE("Conv", ["a1", "a.weight"], ["b0"], name="b", kernel_shape=[3, 3], pads=[1] * 4)
    parts = [(first, weights), normalization("bn.a", "a0", "a1", 16), second, normalization("bn.b", "b0", "b1", 16),
             nets.NODE("GlobalAveragePool", ["b1"], ["y"], name="pool")]  # fmt: skip
    parts[3][1]["bn.b.scale"] *= -3
    path = nets.save(tmp_path / "net.onnx", parts, {"x": [1, 16, 8, 8]}, ["y"])
    feeds = nets.random_feeds(path)
    out = tmp_path / "q.onnx"
    quantize(path, calibrate(path, feeds, observer="minmax"), out, style="openvino")
    original = nets.run(path, feeds)
    assert np.abs(nets.run(out, feeds) - original).max() < 0.06 * np.abs(original).max()


def test_constants_of_nodes_are_weights(tmp_path: Path) -> None:
    path = nets.chain(tmp_path / "net.onnx")
    model = onnx.load(path)
    for name in ("second.weight", "second.bias"):
        tensor = next(w for w in model.graph.initializer if w.name == name)
        model.graph.node.insert(0, helper.make_node("Constant", [], [name], name=f"{name}_node", value=tensor))
        model.graph.initializer.remove(tensor)
    onnx.save(model, tmp_path / "constants.onnx")
    path = tmp_path / "constants.onnx"
    report = quantize(path, calibrate(path, nets.random_feeds(path)), tmp_path / "q.onnx", style="openvino")
    assert report.quantized == ("first", "second", "fc")


def external(path: Path, out: Path) -> Path:
    onnx.save(onnx.load(path), out, save_as_external_data=True, location=f"{out.stem}.data", size_threshold=64)
    assert out.with_suffix(".data").exists()
    return out


@pytest.mark.parametrize("style", STYLES)
def test_weights_in_a_second_file_are_read_and_belong_to_the_model(tmp_path: Path, style: str) -> None:
    whole = nets.residual(tmp_path / "whole.onnx")
    path = external(whole, tmp_path / "net.onnx")
    feeds = nets.random_feeds(path)
    ranges = calibrate(path, feeds)
    for source, out in ((path, tmp_path / "a.onnx"), (whole, tmp_path / "b.onnx")):
        quantize(source, ranges if source is path else calibrate(whole, feeds), out, style=style)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()  # one file, the weights inside
    data = bytearray((tmp_path / "net.data").read_bytes())
    data[100] ^= 1
    (tmp_path / "net.data").write_bytes(data)
    with pytest.raises(Mismatch, match="calibrated on another file"):
        quantize(path, ranges, tmp_path / "c.onnx", style=style)
    (tmp_path / "net.data").unlink()
    with pytest.raises(DataError, match=r"net\.data"):
        read_float_model(path)


def test_more_than_two_gigabytes_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = external(nets.residual(tmp_path / "whole.onnx"), tmp_path / "net.onnx")
    model = onnx.load(path, load_external_data=False)
    weight = next(w for w in model.graph.initializer if w.name == "block.conv1.weight")
    weight.dims[:] = [16384, 4096, 3, 3]
    onnx.save(model, path)
    with pytest.raises(DataError, match=r"holds 2\.4 GB with its external data.*at most 2\.1 GB"):
        read_float_model(path)


def test_the_hash_of_a_single_file_is_the_files(tmp_path: Path) -> None:
    import hashlib

    path = nets.residual(tmp_path / "net.onnx")
    assert files_hash([path]) == hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "empty").touch()
    assert files_hash([tmp_path / "empty"]) == hashlib.sha256(b"").hexdigest()


def wide(path: Path) -> Path:
    """A network with weights that are large enough to be kept apart."""
    return nets.save(
        path, [nets.conv("a", "x", "c", 8, 64), nets.conv("b", "c", "y", 64, 64)], {"x": [1, 8, 6, 6]}, ["y"]
    )


def test_large_weights_are_kept_apart_and_come_back(tmp_path: Path) -> None:
    path = wide(tmp_path / "net.onnx")
    loaded = read_model(path)
    assert set(loaded.weights) == {"a.weight", "b.weight"}
    assert loaded.model.ByteSize() < path.stat().st_size / 20
    assert loaded.whole() == onnx.load(path)
    outside = read_model(external(path, tmp_path / "outside.onnx"))
    assert outside.files == (tmp_path / "outside.onnx", tmp_path / "outside.data")
    assert outside.weights == loaded.weights


@pytest.mark.parametrize("change", [-4, 4], ids=["short", "long"])
def test_a_weight_of_another_size_than_its_shape_is_refused(tmp_path: Path, change: int) -> None:
    path = wide(tmp_path / "net.onnx")
    model = onnx.load(path)
    weight = next(w for w in model.graph.initializer if w.name == "b.weight")
    weight.raw_data = (weight.raw_data + bytes(4))[: len(weight.raw_data) + change]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(DataError, match=r"weight 'b\.weight' of shape \[64, 64, 3, 3\] is stored in"):
        read_model(path)


def test_a_graph_that_is_not_valid_is_refused(tmp_path: Path) -> None:
    path = wide(tmp_path / "net.onnx")
    model = onnx.load(path)
    model.graph.node[1].input[0] = "nothing"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(DataError, match="is not a valid ONNX file"):
        read_model(path)


@pytest.mark.parametrize("style", STYLES)
def test_a_dynamic_batch_stays_dynamic(tmp_path: Path, style: str) -> None:
    path = nets.residual(tmp_path / "net.onnx", batch="n")
    feeds = nets.random_feeds(path, batch=3)
    out = tmp_path / "q.onnx"
    quantize(path, calibrate(path, feeds, observer="minmax"), out, style=style)
    assert onnx.load(out).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "n"
    for size in (1, 5):
        feeds = nets.random_feeds(path, batch=size)
        original = nets.run(path, feeds)
        assert np.abs(nets.run(out, feeds) - original).max() < 0.08 * np.abs(original).max()


@pytest.mark.parametrize("style", STYLES)
def test_dynamic_image_sizes(tmp_path: Path, style: str) -> None:
    parts = [nets.conv("a", "x", "c", 3, 16), nets.NODE("Relu", ["c"], ["r"], name="relu"), nets.conv("b", "r", "d", 16, 16),
             nets.NODE("GlobalAveragePool", ["d"], ["y"], name="pool")]  # fmt: skip
    path = nets.save(tmp_path / "net.onnx", parts, {"x": [1, 3, "h", "w"]}, ["y"])
    rng = np.random.default_rng(0)
    feeds: list[dict[str, Any]] = [{"x": rng.normal(size=(1, 3, s, s)).astype(np.float32)} for s in (8, 12, 9)]
    out = tmp_path / "q.onnx"
    quantize(path, calibrate(path, feeds, observer="minmax"), out, style=style)
    assert np.abs(nets.run(out, feeds) - nets.run(path, feeds)).max() < 0.06 * np.abs(nets.run(path, feeds)).max()


def test_layers_at_the_ends_stay_in_float_by_policy(tmp_path: Path) -> None:
    path = nets.residual(tmp_path / "net.onnx")
    ranges = calibrate(path, nets.random_feeds(path))
    for ends, kept in ((["first"], {"stem"}), (["last"], {"fc"}), (["first", "last"], {"stem", "fc"})):
        for style in STYLES:
            report = quantize(path, ranges, tmp_path / "q.onnx", style=style, float_ends=ends)
            assert set(report.skipped) == kept
            assert all("by policy" in reason for reason in report.skipped.values())
    assert not [f for f in lint(tmp_path / "q.onnx") if f.severity == "error"]
    with pytest.raises(ConfigError, match="unknown end 'lst'"):
        quantize(path, ranges, tmp_path / "q.onnx", float_ends=["lst"])


def test_two_heads_have_two_last_layers(tmp_path: Path) -> None:
    parts = [nets.conv("a", "x", "c", 3, 16), nets.conv("h1", "c", "y1", 16, 16), nets.conv("h2", "c", "m", 16, 16),
             nets.NODE("Relu", ["m"], ["y2"], name="relu")]  # fmt: skip
    path = nets.save(tmp_path / "net.onnx", parts, {"x": [1, 3, 8, 8]}, ["y1", "y2"])
    report = quantize(
        path, calibrate(path, nets.random_feeds(path)), tmp_path / "q.onnx", style="openvino", float_ends=["last"]
    )
    assert set(report.skipped) == {"h1", "h2"}


@pytest.mark.parametrize(
    ("cin", "cout", "groups", "kernel", "reason"),
    [
        (16, 16, 1, 3, ""), (3, 16, 1, 3, ""), (24, 8, 1, 1, ""), (32, 32, 32, 3, ""),
        (17, 18, 1, 3, ""), (12, 18, 1, 3, "neither is a multiple of 8"), (20, 20, 20, 3, "no integer kernel"),
        (32, 32, 32, 1, "no integer kernel"), (8, 8, 1, 3, "fewer than min_channels"),
    ],
)  # fmt: skip
def test_what_tensor_cores_cannot_use_stays_in_float(
    tmp_path: Path, cin: int, cout: int, groups: int, kernel: int, reason: str
) -> None:
    """The rule table of NVIDIA's Model Optimizer: both sides from 16 on always; else multiples of 8, square kernels."""
    parts = [nets.conv("wide", "x", "w", 32, cin), nets.conv("odd", "w", "y", cin, cout, kernel=kernel, groups=groups)]
    path = nets.save(tmp_path / "net.onnx", parts, {"x": [1, 32, 8, 8]}, ["y"])
    report = quantize(path, calibrate(path, nets.random_feeds(path)), tmp_path / "q.onnx", style="tensorrt")
    assert reason in report.skipped.get("odd", "")
    assert ("odd" in report.quantized) == (not reason)


def test_a_layer_in_float16_becomes_int8_as_well(tmp_path: Path) -> None:
    part = nets.conv("half", "h", "g", 16, 16, bias=False)
    part[1]["half.weight"] = part[1]["half.weight"].astype(np.float16)
    parts = [nets.conv("a", "x", "c", 3, 16), nets.NODE("Cast", ["c"], ["h"], name="down", to=TensorProto.FLOAT16), part,
             nets.NODE("Cast", ["g"], ["y"], name="up", to=TensorProto.FLOAT)]  # fmt: skip
    path, out = nets.save(tmp_path / "net.onnx", parts, {"x": [1, 3, 8, 8]}, ["y"]), tmp_path / "q.onnx"
    feeds = nets.random_feeds(path)
    report = quantize(path, calibrate(path, feeds, observer="minmax"), out, style="openvino")
    assert (report.quantized, report.skipped) == (("a", "half"), {})
    original = nets.run(path, feeds)
    assert np.abs(nets.run(out, feeds) - original).max() < 0.06 * np.abs(original).max()


def test_ranges_serve_any_choice_of_layers(tmp_path: Path) -> None:
    """Where both inputs of an addition come from convolutions, leaving either in float asks for no other ranges."""
    parts = [nets.conv("stem", "x", "c0", 16, 16), nets.NODE("Relu", ["c0"], ["r0"], name="relu0"),
             nets.conv("main1", "r0", "c1", 16, 16), nets.NODE("Relu", ["c1"], ["r1"], name="relu1"),
             nets.conv("main2", "r1", "c2", 16, 16), nets.conv("short", "r0", "c3", 16, 16, kernel=1),
             nets.NODE("Add", ["c3", "c2"], ["y"], name="add")]  # fmt: skip
    path = nets.save(tmp_path / "net.onnx", parts, {"x": [1, 16, 8, 8]}, ["y"])
    for style in STYLES:
        ranges = calibrate(path, nets.random_feeds(path), style=style)
        for layer in ("stem", "main1", "main2", "short"):
            others = [name for name in ("stem", "main1", "main2", "short") if name != layer]
            quantize(path, ranges, tmp_path / "q.onnx", style=style, exclude=[layer])
            assert (
                style == "onnxruntime" or [f for f in lint(tmp_path / "q.onnx", style) if f.severity == "error"] == []
            )
            if style != "onnxruntime" or layer in ("stem", "main1"):
                quantize(path, ranges, tmp_path / "q.onnx", style=style, exclude=others)
