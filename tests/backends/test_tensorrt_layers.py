"""Layers in every version's words become the same records; the profiler's share is taken off exactly."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydeploy.backends.tensorrt.inspector import LayerInfo, layout, nodes_of, parse_layers
from pydeploy.backends.tensorrt.layer_times import join, layer_times, samples_of
from pydeploy.errors import DataError
from pydeploy.timing.overhead import without_overhead

FORMATS = [
    # 8.6 and 10
    ({"Format/Datatype": "Row major linear FP32"}, "float32", 1),
    ({"Format/Datatype": "Row major linear FP16 format"}, "float16", 1),
    ({"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}, "float16", 8),
    ({"Format/Datatype": "Channel major FP32 format where channel % 4 == 0"}, "float32", 4),
    ({"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}, "int8", 32),
    ({"Format/Datatype": "Four wide channel vectorized row major Int8 format"}, "int8", 4),
    ({"Format/Datatype": "Two wide channel vectorized row major FP16 format"}, "float16", 2),
    ({"Format/Datatype": "Eight wide channel vectorized row major FP16 format"}, "float16", 8),
    ({"Format/Datatype": "Sixteen wide channel vectorized row major FP16 format"}, "float16", 16),
    ({"Format/Datatype": "Half"}, "float16", 0),
    ({"Format/Datatype": "Int8"}, "int8", 0),
    ({"Format/Datatype": "BFloat16"}, "bfloat16", 0),
    # 11
    ({"Format": "Eight channel FP16 format (kHWC8) where C is padded to a multiple of 8", "Datatype": "Half"}, "float16", 8),
    ({"Format": "Sixteen channel INT8 format (kHWC16) where C is padded", "Datatype": "Int8"}, "int8", 16),
    ({"Format": "Thirty-two wide channel vectorized row major INT8 format (kCHW32)", "Datatype": "Int8"}, "int8", 32),
    ({"Format": "Row major linear FP16 format (kLINEAR)", "Datatype": "Half"}, "float16", 1),
    ({"Format": "Non-vectorized channel-last FP16 format", "Datatype": "Half"}, "float16", 1),
    ({"Format": "", "Datatype": "Float"}, "float32", 0),
    ({"Format/Datatype": "N/A due to dynamic shapes"}, "", 0),
    ({}, "", 0),
]  # fmt: skip


@pytest.mark.parametrize(("said", "dtype", "multiple"), FORMATS, ids=lambda value: str(value)[:40])
def test_formats(said: dict[str, str], dtype: str, multiple: int) -> None:
    found = layout({"Name": "x", "Dimensions": [1, 18, 4, 4], **said})
    assert (found.dtype, found.multiple, found.shape) == (dtype, multiple, (1, 18, 4, 4))


NODES = [
    ("conv1 + relu1", "[ONNX Layer: conv1]\x1e[ONNX Layer: relu1]", ("conv1", "relu1")),
    ("__myl_ConvAdd_0", "[ONNX Layer: a]\x1f[ONNX Layer: b]\x1e[ONNX Layer: a]", ("a", "b")),
    ("__myl_Move_1", "", ()),
    ("conv1.weight_Q + conv1 + relu1", "", ("conv1.weight_Q", "conv1", "relu1")),
    ("conv1 + relu1 [profile 1]", "", ("conv1", "relu1")),
    ("Reformatting CopyNode for Input Tensor 0 to conv1", "", ()),
    ("Reformatting CopyNode for Input Tensor 0 to conv1", "[ONNX Layer: conv1]", ("conv1",)),
    ("/layer1/conv1/Conv", "[ONNX Layer: /layer1/conv1/Conv]", ("/layer1/conv1/Conv",)),
]


@pytest.mark.parametrize(("name", "metadata", "expected"), NODES)
def test_source_nodes(name: str, metadata: str, expected: tuple[str, ...]) -> None:
    assert nodes_of(name, metadata) == expected


def test_names_only_engines_still_list_their_layers() -> None:
    found = parse_layers('{"Layers": ["conv1 + relu1", "fc"], "Bindings": ["x"]}')
    assert [(info.name, info.nodes, info.padding) for info in found] == [
        ("conv1 + relu1", ("conv1", "relu1"), (0, 0)), ("fc", ("fc",), (0, 0))]  # fmt: skip


NO_INSPECTOR = ["", "[]", '{"Layers": 3}', '{"Layers": [{}]}', '{"Layers": [3]}', '{"Layers": ["a"',
                *(f'{{"Layers": [{{"Name": "a", "Inputs": [{{"Dimensions": {d}}}]}}]}}' for d in ("5", '["x"]', "[Infinity]"))]  # fmt: skip


@pytest.mark.parametrize("text", NO_INSPECTOR)
def test_what_is_no_inspector_output_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="inspector"):
        parse_layers(text)


def info(name: str, *nodes: str) -> LayerInfo:
    return LayerInfo(name, "", nodes)


def one(us: float) -> np.ndarray:
    return np.array([us])


def test_join_by_order_where_names_repeat() -> None:
    infos = [info("copy", "a"), info("conv", "b"), info("copy", "c")]
    joined = join([("copy", one(1)), ("conv", one(2)), ("copy", one(3))], infos)
    assert [(i.nodes, t[0]) for i, t in joined] == [(("a",), 1), (("b",), 2), (("c",), 3)]
    assert [layer.name for layer in layer_times(joined)] == ["copy", "conv", "copy #2"]


def test_join_by_name_where_the_lists_differ() -> None:
    joined = join([("b + c", one(1)), ("new", one(2))], [info("a", "a"), info("b + c", "b")])
    assert [(i.name, i.nodes) for i, _ in joined] == [("b + c", ("b",)), ("new", ("new",))]


def test_join_by_name_where_as_many_are_in_another_order() -> None:
    joined = join([("b", one(1)), ("a", one(2))], [info("a", "x"), info("b", "y")])
    assert [(i.name, i.nodes) for i, _ in joined] == [("b", ("y",)), ("a", ("x",))]


def test_join_by_name_takes_equal_names_in_turn() -> None:
    joined = join([("a", one(1)), ("a", one(2)), ("new", one(3))], [info("a", "x"), info("a", "y")])
    assert [i.nodes for i, _ in joined] == [("x",), ("y",), ("new",)]


def test_padding_is_of_what_is_read_and_of_what_is_written() -> None:
    text = {"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}
    other = {"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}
    layer = {
        "Name": "a",
        "Inputs": [{"Name": "x", **text}],
        "Outputs": [{"Name": "y", **other}],
        "TacticName": "t",
        "Tactic": "u",
    }
    (found,) = parse_layers(json.dumps({"Layers": [layer]}))
    assert (found.padding, found.tactic) == ((8, 32), "t")
    del layer["TacticName"]
    assert parse_layers(json.dumps({"Layers": [layer]}))[0].tactic == "u"


def test_samples_are_per_layer() -> None:
    found = samples_of([[("a", 0.001), ("b", 0.002)], [("a", 0.003), ("b", 0.004)]])
    assert [(name, list(values)) for name, values in found] == [("a", [1.0, 3.0]), ("b", [2.0, 4.0])]
    with pytest.raises(DataError, match="no layers"):
        samples_of([[], []])
    with pytest.raises(DataError, match="other layers"):
        samples_of([[("a", 1.0)], [("b", 1.0)]])


def by_bisection(medians: np.ndarray, whole: float) -> float:
    """The oracle: the constant at which what remains adds up to the whole."""
    low, high = 0.0, float(medians.max(initial=0.0))
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(medians - middle, 0).sum() > whole else (low, middle)
    return high


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=20), st.floats(0.1, 5000))
def test_the_profilers_share_is_one_constant(medians: list[float], whole: float) -> None:
    times = [np.array([value, value, value]) for value in medians]
    freed, constant = without_overhead(times, whole)
    total = sum(medians)
    assert constant >= 0
    if total <= whole:
        assert constant == 0
        np.testing.assert_array_equal(freed, times)
    else:
        assert constant == pytest.approx(by_bisection(np.array(medians), whole), abs=1e-6)
        assert sum(float(np.median(values)) for values in freed) == pytest.approx(whole, abs=1e-6)


def test_no_single_factor() -> None:
    """1.7 to 7 us a layer is what recorded profiles show; a factor would take most of it off the longest layer."""
    true = np.array([100.0, 10.0, 1.0])
    freed, constant = without_overhead([one(us + 5.0) for us in true], float(true.sum()))
    assert constant == pytest.approx(5.0)
    np.testing.assert_allclose(np.concatenate(freed), true)


def test_raw_control_characters_in_the_json() -> None:
    text = json.dumps({"Layers": [{"Name": "a", "Metadata": "[ONNX Layer: x]@[ONNX Layer: y]"}]}).replace("@", "\x1e")
    assert parse_layers(text)[0].nodes == ("x", "y")
