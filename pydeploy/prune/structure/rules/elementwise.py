"""Rules of operators that work entry by entry, on places, or along axes; and of those that make tensors."""

from __future__ import annotations

from pydeploy.prune.structure.layout import Layout, Unknown
from pydeploy.prune.structure.operators import ADDS, SUMS, reduced_axes
from pydeploy.prune.structure.rules.meeting import met
from pydeploy.prune.structure.state import Made, Tracer
from pydeploy.prune.structure.tape import Call


def entrywise(t: Tracer, call: Call) -> Made:
    """Entry by entry on any number of tensors with broadcasting: channels that meet are united."""
    inputs = call.inputs
    alone = len(inputs) == 1 and inputs[0].rank == call.outs[0].rank
    layout = t.layout(inputs[0]) if alone else met(t, inputs, call.outs[0].rank, _role(t, call))
    _follow_norm(t, call, layout)
    return [layout] * len(call.outs)


def _role(t: Tracer, call: Call) -> str:
    """What parameters are here: behind a norm that is written out, its scale and shift; else what is added is a bias."""
    if call.op == "mul" and any(t.norms.get(value) == "normed" for value in call.inputs):
        return "scale"
    if call.op in ADDS:
        return "shift" if any(t.norms.get(value) == "scaled" for value in call.inputs) else "bias"
    return ""


def _follow_norm(t: Tracer, call: Call, layout: Layout | None) -> None:
    """Notes the steps of a norm that is written out: channels over a number for each of them, then times a parameter."""
    inputs, out = call.inputs, call.outs[0]
    steps = [t.norms.get(value) for value in inputs]
    if call.op in ("rsqrt", "reciprocal"):
        t.norms[out] = "inverse"
    elif len(inputs) == 2 and layout is not None and (call.op == "div" or (call.op == "mul" and "inverse" in steps)):
        sizes = inputs[steps.index("inverse") if call.op == "mul" else 1].shape
        if len(sizes) == out.rank and sizes[layout.axis] > 1 and all(
            size == 1 for axis, size in enumerate(sizes) if axis not in (0, layout.axis)
        ) and any(size > 1 for axis, size in enumerate(out.shape) if axis not in (0, layout.axis)):  # fmt: skip
            t.norms[out] = "normed"
    elif call.op == "mul" and "normed" in steps and any(value in t.views for value in inputs):
        t.norms[out] = "scaled"


def spatial(t: Tracer, call: Call) -> Made:
    """Pooling and resizing: axes 0 and 1 stay, the others are mixed."""
    layout = t.layout(call.args[0])
    mixed = next(n for n in (1, 2, 3) if f"{n}d" in call.op)
    if layout is not None and layout.axis >= call.args[0].rank - mixed:
        raise Unknown("channels lie on a spatial axis")
    return [layout] * len(call.outs)


def pad(t: Tracer, call: Call) -> Made:
    """``aten::constant_pad_nd(input, pad, value)``: `pad` counts pairs from the last axis."""
    layout = t.layout(call.args[0])
    if layout is not None:
        back = call.args[0].rank - 1 - layout.axis
        if any(call.args[1][2 * back : 2 * back + 2]):
            raise Unknown("channels are padded")
    return layout


def reduce(t: Tracer, call: Call) -> Made:
    """Mean, sum, norm, ... over axes without channels; whole groups of channels that live together are fine, too."""
    source = call.args[0]
    layout = t.layout(source)
    if layout is None:
        return None
    axes = reduced_axes(call.op, call.args, source.rank)
    if layout.axis in axes:
        order = call.args[1] if call.op in ("linalg_vector_norm", "norm") else 1
        if source in t.contents.silent and call.op in SUMS and isinstance(order, int | float) and order > 0:
            return None
        raise Unknown("reduces over channels")
    kept = [axis for axis in range(source.rank) if axis not in axes]
    axis = layout.axis if call.outs[0].rank == source.rank else kept.index(layout.axis)
    return [Layout(axis, layout.atoms)] * len(call.outs)


def extreme(t: Tracer, call: Call) -> Made:
    """``aten::max``: of two tensors, or over an axis."""
    return entrywise(t, call) if len(call.inputs) > 1 else reduce(t, call)


def along(t: Tracer, call: Call) -> Made:
    """Works along one axis (softmax, cumsum, sort, roll, flip): that must not be the channels'."""
    layout = t.layout(call.args[0])
    if layout is not None:
        axis_like = [a for a in call.args[1:] if isinstance(a, int | list | tuple) and not isinstance(a, bool)]
        given = call.args[-1] if call.op == "roll" else next(iter(axis_like), None)
        given = call.args[2] if call.op == "topk" else given
        rank = call.args[0].rank
        axes = {d % rank for d in ([given] if isinstance(given, int) else given or range(rank))}
        if layout.axis in axes:
            raise Unknown("works along the channels")
    return [layout] * len(call.outs)


def region(t: Tracer, call: Call) -> Made:
    """RoI pooling and grid sampling: the first argument's channels on axis 1, places from tensors without channels."""
    layout = t.layout(call.args[0])
    if any(t.layout(v) is not None for v in call.inputs[1:]):
        raise Unknown("channels choose places")
    if layout is not None and layout.axis != 1:
        raise Unknown("channels lie on another axis than 1")
    return [layout] * len(call.outs)


def made(_t: Tracer, _call: Call) -> Made:
    """Makes a tensor whose values do not depend on channels (``empty``, ``zeros``, ``arange``)."""
    return None


def meshed(t: Tracer, call: Call) -> Made:
    if any(t.layout(value) is not None for value in call.inputs):
        raise Unknown("channels become an axis of a grid")
    return None
