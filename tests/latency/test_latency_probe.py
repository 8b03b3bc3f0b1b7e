"""`latency.probes`: the cut file computes what the dense one computes with the dropped channels silenced."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from latency_nets import NETS, residual, squeeze_excite
from pydeploy.errors import Mismatch
from pydeploy.graph import Graph, Group, Slice
from pydeploy.latency.probes.cut_onnx import resize
from pydeploy.latency.probes.kept_axes import follow
from pydeploy.latency.probes.sites import Site, Tangled

BIASES = {"residual": {"a": ["stem_folded", "conv2_folded"], "b": ["conv1_folded"]},
          "squeeze_excite": {"e": ["stem_folded", "dw_folded", "excite_folded"], "s": ["squeeze_folded"],
                             "p": ["project_folded"]}}  # fmt: skip


def silenced(model: onnx.ModelProto, graph: Graph, widths: dict[str, int], biases: dict[str, list[str]]):
    """The dense model with all weights and biases of channels beyond `widths` set to zero (independent of resize)."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def zero(name: str, axis: int, entries: np.ndarray) -> None:
        array = numpy_helper.to_array(tensors[name]).copy()
        np.moveaxis(array, axis, 0)[entries] = 0
        tensors[name].CopyFrom(numpy_helper.from_array(array, name))

    for name, width in widths.items():
        gone = np.arange(width, graph.by_name[name].width)
        for piece in graph.by_name[name].slices:
            if piece.dim == 0:
                zero(piece.param, 0, piece.entries(gone))
        for bias in biases[name]:
            zero(bias, 0, gone)
    return model


def run(model: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    return ReferenceEvaluator(model).run(None, {"image": image})[0]


@pytest.mark.parametrize("name", NETS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_cut_equals_silenced(name: str, data: st.DataObject) -> None:
    model, graph = NETS[name]()
    before = model.SerializeToString()
    widths = {group.name: data.draw(st.integers(1, group.width), group.name) for group in graph.prunable}
    small = resize(model, graph, widths)
    image = np.random.default_rng(3).normal(size=graph.inputs[0]).astype(np.float32)
    np.testing.assert_allclose(run(small, image), run(silenced(model, graph, widths, BIASES[name]), image), atol=1e-4)
    assert model.SerializeToString() == before
    for op in graph.ops:
        node = next(node for node in small.graph.node if node.name == op.name)
        weight = next(t for t in small.graph.initializer if t.name == node.input[1])
        key = op.key({**graph.widths, **widths})
        inner = key.cin // key.groups
        assert int(np.prod(weight.dims)) == key.cout * inner * int(np.prod(key.kernel)), op.name


@pytest.mark.parametrize("name", NETS)
def test_dense_widths_change_nothing(name: str) -> None:
    model, graph = NETS[name]()
    image = np.random.default_rng(3).normal(size=graph.inputs[0]).astype(np.float32)
    np.testing.assert_array_equal(run(resize(model, graph, {}), image), run(model, image))


def test_drawn_weights_are_finite_seeded_and_keep_the_scale() -> None:
    model, graph = residual(64, 64)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("weight"):
            tensor.CopyFrom(numpy_helper.from_array(np.full(tuple(tensor.dims), np.nan, np.float32), tensor.name))
    small = resize(model, graph, {"a": 24, "b": 40}, np.random.default_rng(0))
    again = resize(model, graph, {"a": 24, "b": 40}, np.random.default_rng(0))
    weight = next(numpy_helper.to_array(t) for t in small.graph.initializer if t.name == "conv2.weight")
    assert small.SerializeToString() == again.SerializeToString()
    assert np.isfinite(weight).all()
    assert weight.shape == (24, 40, 3, 3)
    assert np.var(weight) == pytest.approx(2 / (40 * 9), rel=0.1)


def test_constant_nodes_and_shared_constants() -> None:
    # One constant feeds two nodes that need it at different widths: it becomes two.
    model, graph = residual(16, 8)
    shape = next(t for t in model.graph.initializer if t.name == "flat")
    node = onnx.helper.make_node("Constant", [], ["flat"], value=onnx.TensorProto.FromString(shape.SerializeToString()))
    model.graph.initializer.remove(shape)
    model.graph.node.insert(0, node)
    small = resize(model, graph, {"a": 5})
    assert not [node for node in small.graph.node if node.op_type == "Constant"]
    assert run(small, np.zeros((1, 3, 8, 8), np.float32)).shape == (1, 10)


def test_contradicting_graph_names_the_node() -> None:
    model, graph = residual()
    a, b, classes = graph.groups
    slices = tuple(piece for piece in a.slices if piece.param != "conv1.weight")
    broken = Graph((Group("a", a.width, slices), b, classes), graph.ops, graph.params, 0, graph.inputs)
    with pytest.raises(Mismatch, match=r"node 'conv1' \(Conv\): its input has 8 channels"):
        resize(model, broken, {"a": 8})


def test_half_a_residual_names_the_addition() -> None:
    model, graph = residual()
    a, b, classes = graph.groups
    slices = tuple(piece for piece in a.slices if piece != Slice("conv2.weight", 0))
    broken = Graph((Group("a", a.width, slices), b, classes), graph.ops, graph.params, 0, graph.inputs)
    with pytest.raises(Mismatch, match=r"node '/sum' \(Add\)"):
        resize(model, broken, {"a": 8})


def test_foreign_graph_is_refused() -> None:
    model, _ = residual()
    with pytest.raises(Mismatch, match="no node named 'dw'"):
        resize(model, squeeze_excite()[1], {})


def mask(*kept: int) -> np.ndarray:
    return np.asarray(kept, dtype=bool)


def test_a_shuffle_shrinks_the_channels_or_the_groups_as_the_entries_say() -> None:
    target = np.array([1, 2, 8, 4, 4])
    for kept, expected in ((mask(*[1, 0] * 8), [1, 2, 4, 4, 4]), (mask(*[1] * 8, *[0] * 8), [1, 1, 8, 4, 4])):
        site = Site("Reshape", [(1, 16, 4, 4), (5,)], [(1, 2, 8, 4, 4)], [None, target], [{1: kept}, {}])
        assert follow(site).constants[1].tolist() == expected


def test_entries_that_no_axes_hold_are_refused() -> None:
    site = Site("Reshape", [(1, 4), (3,)], [(1, 2, 2)], [None, np.array([1, 2, 2])], [{1: mask(1, 1, 1, 0)}, {}])
    with pytest.raises(Tangled):
        follow(site)


def test_split_and_normalization_follow() -> None:
    kept = mask(1, 1, 0, 0, 1, 1, 1, 0)
    split = Site(
        "Split", [(1, 8, 4), (2,)], [(1, 3, 4), (1, 5, 4)], [None, np.array([3, 5])], [{1: kept}, {}], {"axis": 1}
    )
    cut = follow(split)
    assert cut.constants[1].tolist() == [2, 3]
    assert [found[1].tolist() for found in cut.kept] == [kept[:3].tolist(), kept[3:].tolist()]
    norm = Site("BatchNormalization", [(1, 8, 2), (8,), (8,)], [(1, 8, 2)], [None, np.arange(8.0), np.arange(8.0)],
                [{1: kept}, {}, {}])  # fmt: skip
    assert [v.tolist() for v in follow(norm).constants.values()] == [[0, 1, 4, 5, 6]] * 2
