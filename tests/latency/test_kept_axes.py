"""A cut node on a cut tensor gives what stays of the dense node's result: the reference implementation of ONNX is the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pydeploy.latency.probes.kept_axes import follow
from pydeploy.latency.probes.node_shapes import computed
from pydeploy.latency.probes.sites import Site, Tangled, taken

MODEL = onnx.helper.make_model(onnx.GraphProto(name="none"), opset_imports=[onnx.helper.make_opsetid("", 20)])


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, dtype=np.int64)


@st.composite
def nodes(draw: st.DrawFn, kind: str) -> tuple[np.ndarray, list[np.ndarray], dict[str, Any], int]:
    """Data, constant inputs behind it, attributes, number of outputs."""
    shape = draw(st.lists(st.integers(2, 4), min_size=2, max_size=4))
    rank = len(shape)
    axis = draw(st.integers(0, rank - 1))
    size = shape[axis]
    data = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    begin = draw(st.integers(0, size - 1))
    first = draw(st.integers(1, size - 1))
    merged = draw(st.sampled_from([[-1], [shape[0], -1], [0, -1], [*shape[:-1], 2, -1], [1, *shape]]))
    perm = draw(st.permutations(range(rank)))
    along = data[tuple(slice(None) if a == axis else slice(0, 1) for a in range(rank))]
    forms: dict[str, tuple[list[np.ndarray], dict[str, Any], int]] = {
        "Reshape": ([ints(*merged)], {}, 1),
        "Flatten": ([], {"axis": 1}, 1),
        "Transpose": ([], {"perm": list(perm)}, 1),
        "Unsqueeze": ([ints(draw(st.integers(0, rank)))], {}, 1),
        "Expand": ([ints(2, *shape)], {}, 1),
        "Tile": ([ints(*draw(st.lists(st.integers(1, 2), min_size=rank, max_size=rank)))], {}, 1),
        "Split": ([ints(first, size - first)], {"axis": axis}, 2),
        "Slice": ([ints(begin), ints(draw(st.sampled_from([size, 2**40]))), ints(axis)], {}, 1),
        "Gather": ([draw(st.sampled_from([ints(begin), ints(0, begin), np.int64(begin)]))], {"axis": axis}, 1),
        "Add": ([along], {}, 1),
        "Relu": ([], {}, 1),
        "Softmax": ([], {"axis": axis}, 1),
        "ReduceSum": ([ints(axis)], {"keepdims": draw(st.integers(0, 1))}, 1),
        "LayerNormalization": ([along.reshape(-1)], {"axis": -1}, 1),
    }
    constants, attributes, outputs = forms[kind]
    if kind == "Reshape" and merged[-2:] == [2, -1]:
        assume(shape[-1] % 2 == 0)
    if kind == "LayerNormalization":
        assume(axis == rank - 1)
    return data, constants, attributes, outputs


def run(kind: str, inputs: list[np.ndarray], attributes: dict[str, Any], outputs: int) -> list[np.ndarray]:
    names = [f"i{n}" for n in range(len(inputs))]
    node = onnx.helper.make_node(kind, names, [f"o{n}" for n in range(outputs)], **attributes)
    found = computed(MODEL, node, dict(zip(names, inputs, strict=True)))
    return [found[f"o{n}"] for n in range(outputs)]


KINDS = ("Add", "Expand", "Flatten", "Gather", "LayerNormalization", "ReduceSum", "Relu", "Reshape", "Slice", "Softmax", "Split", "Tile",
         "Transpose", "Unsqueeze")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.filter_too_much])
@given(data=st.data())
def test_a_cut_node_gives_what_stays_of_the_dense_result(kind: str, data: st.DataObject) -> None:
    source, constants, attributes, outputs = data.draw(nodes(kind))
    cut_axis = data.draw(st.integers(0, source.ndim - 1))
    mask = np.asarray(
        data.draw(st.lists(st.booleans(), min_size=source.shape[cut_axis], max_size=source.shape[cut_axis]))
    )
    assume(mask.any() and not mask.all())
    mixes = attributes.get("axis", -1) % source.ndim if kind in ("Softmax", "LayerNormalization") else None
    assume(cut_axis != mixes and not (kind == "ReduceSum" and cut_axis == constants[0][0]))
    dense = run(kind, [source, *constants], attributes, outputs)
    site = Site(kind, [array.shape for array in (source, *constants)], [array.shape for array in dense], [None, *constants],
                [{cut_axis: mask}, *({} for _ in constants)], attributes)  # fmt: skip
    try:
        cut = follow(site)
    except Tangled:
        marked = np.broadcast_to(np.expand_dims(mask, [a for a in range(source.ndim) if a != cut_axis]), source.shape)
        stays = run(kind, [marked.astype(np.float32), *constants], attributes, outputs)[0]
        along = [stays.any(tuple(i for i in range(stays.ndim) if i != a)).sum() for a in range(stays.ndim)]
        assert stays.sum() != np.prod(along) or not stays.any()
        return
    assume(
        all(which.any() for kept in cut.kept for which in kept.values())
    )  # nothing stays of a part: no network has that
    small = [cut.constants.get(n, constant) for n, constant in enumerate(constants, start=1)]
    found = run(kind, [taken(source, {cut_axis: mask}), *small], attributes, outputs)
    for got, whole, kept in zip(found, dense, cut.kept, strict=True):
        np.testing.assert_allclose(got, taken(whole, kept), rtol=1e-5)
