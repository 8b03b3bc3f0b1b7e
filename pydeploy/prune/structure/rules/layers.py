"""Rules of operators with weights: convolution, linear layers, normalization, attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pydeploy.prune.structure.layout import Labels, Layout, Unknown
from pydeploy.prune.structure.rules.meeting import met
from pydeploy.prune.structure.state import Bound, Tracer
from pydeploy.prune.structure.tape import Call, Value


def convolution(t: Tracer, call: Call) -> Layout | None:
    """``aten::convolution(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups)``."""
    source, weight, bias, stride, _, dilation, transposed, _, groups = call.args[:9]
    facts = {"kernel": weight.shape[2:], "stride": tuple(stride), "dilation": tuple(dilation)}
    return _convolve(t, call, source, weight, bias, groups, transposed=transposed, facts=facts)


def deform_conv(t: Tracer, call: Call) -> Layout | None:
    """``torchvision::deform_conv2d(input, weight, offset, mask, bias, stride.., pad.., dilation.., groups, offset groups, ..)``."""
    source, weight, offset, mask, bias = call.args[:5]
    numbers = call.args[5:]
    if t.layout(offset) is not None or t.layout(mask) is not None:
        for value in (offset, mask):
            t.freeze(value, f"{call.location}: offsets of a deformable convolution")
    if numbers[7] > 1:
        raise Unknown("a deformable convolution with several offset groups")
    facts = {"kernel": weight.shape[2:], "stride": tuple(numbers[0:2]), "dilation": tuple(numbers[4:6])}
    return _convolve(t, call, source, weight, bias, numbers[6], transposed=False, facts=facts)


def _convolve(
    t: Tracer,
    call: Call,
    source: Value,
    weight: Value,
    bias: Value | None,
    groups: int,
    *,
    transposed: bool,
    facts: Mapping[str, Any],
) -> Layout | None:
    out = call.outs[0]
    axis = out.rank - (weight.rank - 1)  # 0 without a batch axis
    layout = t.layout(source)
    passing = layout if layout is not None and layout.axis < axis else None
    incoming = None if passing is not None else t.channels(source, axis)
    depthwise = 1 < groups == source.shape[axis]
    if (
        depthwise
        and weight not in t.views
        and (weight in t.contents.uniform or 0 in t.contents.repeated.get(weight, ()))
    ):
        return _same_for_all(layout, axis, out)
    name = t.name(weight)
    outgoing = t.fresh(out.shape[axis])
    if passing is not None:
        t.atoms.freeze(outgoing, f"{call.location}: channels lie on the batch axis")
    dims: tuple[Bound, Bound] = _weight_dims(t, call, incoming, outgoing, groups, depthwise)
    if source in t.contents.nothing and groups == 1:
        dims = (dims[0], ...)
    to, of = (1, 0) if transposed else (0, 1)
    t.bind(weight, {to: dims[0], of: dims[1]}, {0: "filter"} if depthwise else {to: "filter", of: "input"})
    if bias is not None and bias not in t.contents.uniform:
        t.bind(bias, {0: outgoing}, {0: "bias"})
    size = source.shape[axis + 1 :] if transposed else out.shape[axis + 1 :]
    h, w = int(np.prod(size[:-1], dtype=np.int64)), size[-1]
    t.record("conv_transpose" if transposed else "conv", name, incoming, outgoing, (h, w), source.shape[axis],
             groups=groups, depthwise=depthwise, **facts)  # fmt: skip
    return passing if passing is not None else Layout(axis, outgoing)


def _same_for_all(layout: Layout | None, axis: int, out: Value) -> Layout | None:
    """A depthwise convolution with one constant kernel, made to the number of channels: a blur."""
    if layout is None or layout.axis != axis:
        return layout
    return Layout(axis, np.repeat(layout.atoms, out.shape[axis] // len(layout.atoms)))


def _weight_dims(
    t: Tracer, call: Call, incoming: Labels | None, outgoing: Labels, groups: int, depthwise: bool
) -> tuple[Labels | None, Labels | None]:
    """Atoms of the weight's output and input dims. Grouped: the same offset goes in every group; depthwise: the output follows its
    input. A transposed weight has its output dim short, the others their input dim.
    """
    short_out = bool(call.args[6]) if call.op == "convolution" else False
    if groups == 1:
        return outgoing, incoming
    if depthwise:
        if incoming is None:
            t.atoms.freeze(outgoing, f"{call.location}: depthwise on values that are not channels")
        else:
            t.atoms.unite(np.repeat(incoming, len(outgoing) // groups), outgoing)
        return (None, incoming) if short_out else (outgoing, None)
    out_rows = outgoing.reshape(groups, -1)
    t.atoms.unite(out_rows, out_rows[:1])
    if incoming is None:
        return (out_rows[0], None) if short_out else (outgoing, None)
    rows = incoming.reshape(groups, -1)
    t.atoms.unite(rows, rows[:1])
    return (out_rows[0], incoming) if short_out else (outgoing, rows[0])


def linear(t: Tracer, source: Value, weight: Value, bias: Value | None, call: Call) -> Layout | None:
    """``source @ weight`` where `weight` is made of parameters and its last two axes are (in, out)."""
    out = call.outs[0]
    layout = t.layout(source)
    passing = layout if layout is not None and layout.axis != source.rank - 1 else None
    incoming = None if passing is not None else t.channels(source, -1)
    name = t.name(weight)
    outgoing = t.fresh(out.shape[-1])
    if passing is not None:
        t.atoms.freeze(outgoing, f"{call.location}: channels lie on another axis than the last")
    to, of = weight.rank - 1, weight.rank - 2
    t.bind(weight, {to: outgoing, of: ... if source in t.contents.nothing else incoming}, {to: "filter", of: "input"})
    if bias is not None and bias not in t.contents.uniform:
        t.bind(bias, {bias.rank - 1: outgoing}, {bias.rank - 1: "bias"})
    rows = int(np.prod(out.shape[:-1], dtype=np.int64))
    positions = rows // t.batch if rows % t.batch == 0 else rows
    t.record("linear", name, incoming, outgoing, (positions, 1), source.shape[-1])
    return passing if passing is not None else Layout(out.rank - 1, outgoing)


def addmm(t: Tracer, call: Call) -> Layout | None:
    """``aten::addmm(bias, a, b)``, also baddbmm."""
    bias, left, right = call.args[:3]
    if right in t.views:
        return linear(t, left, right, bias, call)
    product = matmul(t, left, right, call)
    if product is not None:
        t.layouts[call.outs[0]] = product
    return met(t, [call.outs[0], bias], call.outs[0].rank, "bias")


def mm(t: Tracer, call: Call) -> Layout | None:
    return matmul(t, call.args[0], call.args[1], call)


def matmul(t: Tracer, left: Value, right: Value, call: Call) -> Layout | None:
    """``left @ right``, batched or not. Channels that are summed over live together: in attention, a whole head."""
    if right in t.views:
        return linear(t, left, right, None, call)
    rank = call.outs[0].rank
    if left in t.views:
        return _weight_first(t, left, right, call)
    one, two = t.layout(left), t.layout(right)
    for layout, inner in ((one, left.rank - 1), (two, right.rank - 2)):
        if layout is not None and layout.axis == inner:
            t.atoms.freeze(layout.atoms, f"{call.location}: channels are summed over without a weight")
    one = None if one is None or one.axis == left.rank - 1 else Layout(one.axis + rank - left.rank, one.atoms)
    two = None if two is None or two.axis == right.rank - 2 else Layout(two.axis + rank - right.rank, two.atoms)
    if one is None or two is None:
        lone, other = (one, right) if one is not None else (two, left)
        if (
            lone is not None
            and lone.axis < rank - 2
            and other.shape[lone.axis - (rank - other.rank)] > 1
            and other not in t.contents.uniform
        ):
            raise Unknown("a product with a tensor that has no channels of its own")
        return lone
    if one.axis != two.axis:
        raise Unknown("channels lie on different axes of a product")
    t.atoms.unite(one.atoms, two.atoms)
    return one


def _weight_first(t: Tracer, weight: Value, source: Value, call: Call) -> Layout | None:
    """``weight @ source``: channels on the last axis but one."""
    out = call.outs[0]
    layout = t.layout(source)
    if layout is not None and layout.axis != source.rank - 2:
        raise Unknown("channels lie on another axis than the weight's")
    incoming = None if layout is None else layout.atoms
    outgoing = t.fresh(out.shape[-2])
    to, of = weight.rank - 2, weight.rank - 1
    t.bind(weight, {to: outgoing, of: incoming}, {to: "filter", of: "input"})
    t.record("linear", t.name(weight), incoming, outgoing, (out.shape[-1], 1), source.shape[-2])
    return Layout(out.rank - 2, outgoing)


def attention(t: Tracer, call: Call) -> list[Layout | None]:
    """Scaled dot-product attention of (batch, heads, tokens, features): heads only."""
    query, key, value = (t.layout(call.args[i]) for i in range(3))
    found = [layout for layout in (query, key, value) if layout is not None]
    mask = next((v for v in call.inputs[3:]), None)
    if not found:
        return [None] * len(call.outs)
    if len(found) < 3 or any(layout.axis != 1 for layout in found):
        raise Unknown("channels do not lie on the heads' axis")
    for layout in found[1:]:
        t.atoms.unite(found[0].atoms, layout.atoms)
    if mask is not None:
        met(t, [call.args[0], mask], 4)
    return [found[0] if out.rank >= 2 and out.shape[1] == len(found[0].atoms) else None for out in call.outs]


def batch_norm(t: Tracer, call: Call) -> Layout | None:
    """``aten::native_batch_norm(input, weight, bias, running_mean, running_var, ...)``."""
    layout = t.layout(call.args[0])
    if layout is not None and layout.axis == 0 and call.args[0].shape[0] > 1:
        raise Unknown("channels lie on the batch axis")
    atoms = t.channels(call.args[0], 1)
    for tensor, role in zip(call.args[1:5], ("scale", "shift", None, None), strict=True):
        if tensor is not None and (tensor in t.views or atoms is not None):
            if tensor not in t.views and tensor in t.contents.uniform:
                continue
            t.bind(tensor, {0: atoms}, {0: role} if role else {})
    return layout


def layer_norm(t: Tracer, call: Call) -> list[Layout | None]:
    """``aten::native_layer_norm(input, normalized_shape, weight, bias, eps)``: the statistics run over the last axes."""
    source, shape, weight, bias = call.args[:4]
    layout = t.layout(source)
    first = source.rank - len(shape)
    inside = layout is not None and layout.axis >= first
    if layout is not None and inside:
        t.atoms.notes.append((layout.atoms, f"{call.location}: its statistics run over the kept channels"))
    for tensor in (weight, bias):
        if tensor is not None:
            t.bind(tensor, {layout.axis - first: layout.atoms} if layout is not None and inside else {})
    return [layout, *[None] * (len(call.outs) - 1)]


def rms_norm(t: Tracer, call: Call) -> list[Layout | None]:
    """``aten::_fused_rms_norm(input, normalized_shape, weight, eps)``."""
    bare = Call(call.op, [*call.args[:3], None], call.outs, call.path, call.site, [])
    return layer_norm(t, bare)


def group_norm(t: Tracer, call: Call) -> list[Layout | None]:
    """``aten::native_group_norm(input, weight, bias, N, C, HxW, group, eps)``: a norm group lives or dies as a whole."""
    source, weight, bias, groups = call.args[0], call.args[1], call.args[2], call.args[6]
    atoms = t.channels(source, 1)
    if atoms is not None and groups == 1:
        t.atoms.notes.append((atoms, f"{call.location}: its statistics run over the kept channels"))
    elif atoms is not None and groups < len(atoms):
        rows = atoms.reshape(groups, -1)
        t.atoms.unite(rows, rows[:, :1])
    for tensor in (weight, bias):
        if tensor is not None:
            t.bind(tensor, {0: atoms})
    return [t.layout(source), *[None] * (len(call.outs) - 1)]


def embedding(t: Tracer, call: Call) -> Layout | None:
    """``aten::embedding(weight, indices)``: the features are channels."""
    weight, indices = call.args[:2]
    if t.layout(indices) is not None:
        raise Unknown("channels choose entries")
    outgoing = t.fresh(weight.shape[1])
    t.bind(weight, {0: None, 1: outgoing}, {1: "filter"})
    return Layout(call.outs[0].rank - 1, outgoing)
