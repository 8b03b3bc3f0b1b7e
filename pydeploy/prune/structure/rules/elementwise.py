"""How each ATen operator moves channel layouts: one small rule per operator, in the literal table `RULES`.

A rule is ``f(tracer, call)``: it returns the layout of the first result, or a list with one per result, or raises
`Unknown` with a reason: then every channel that went in is frozen and the results carry none. An operator without a rule is
treated the same way. Layers with weights are in `layers`, joining and splitting in `rearrange`, the rest is here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pydeploy.prune.structure.contents import MADE
from pydeploy.prune.structure.layout import Layout, Unknown, reshaped
from pydeploy.prune.structure.rules import layers, rearrange
from pydeploy.prune.structure.tape import Call

if TYPE_CHECKING:
    from pydeploy.prune.structure.propagate import Tracer

Made = Layout | None | list[Layout | None]
Rule = Callable[["Tracer", Call], Made]


def elementwise(t: Tracer, call: Call) -> Made:
    """Entry by entry on any number of tensors with broadcasting: channels that meet are united."""
    return layers.met(t, call.inputs, call.outs[0].rank, added=call.op in ("add", "sub", "rsub"))


def same(t: Tracer, call: Call) -> Made:
    """All results look like the first argument."""
    return [t.layout(call.args[0])] * len(call.outs)


def copy(t: Tracer, call: Call) -> Made:
    """``aten::copy_(self, src)``: the contents are those of `src`."""
    return layers.met(t, call.args[:2], call.outs[0].rank)


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
    given = (
        call.args[2]
        if call.op == "linalg_vector_norm" or call.op == "norm"
        else call.args[1]
        if len(call.args) > 1
        else None
    )
    axes = {d % source.rank for d in ([given] if isinstance(given, int) else given or range(source.rank))}
    if layout.axis in axes:
        order = call.args[1] if call.op in ("linalg_vector_norm", "norm") else 1
        if source in t.contents.silent and call.op in _SUMS and isinstance(order, int | float) and order > 0:
            return None
        raise Unknown("reduces over channels")
    kept = [axis for axis in range(source.rank) if axis not in axes]
    axis = layout.axis if call.outs[0].rank == source.rank else kept.index(layout.axis)
    return [Layout(axis, layout.atoms)] * len(call.outs)


_SUMS = ("sum", "linalg_vector_norm", "norm")
"""What zeros do not change."""


def extreme(t: Tracer, call: Call) -> Made:
    """``aten::max``: of two tensors, or over an axis."""
    return elementwise(t, call) if len(call.inputs) > 1 else reduce(t, call)


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


def view(t: Tracer, call: Call) -> Made:
    source, out = call.args[0], call.outs[0]
    layout = t.layout(source)
    if layout is None or source.shape == out.shape:
        return layout
    return reshaped(t.atoms, layout, source.shape, out.shape, t.choose)


def moved(order: Callable[[Call], Sequence[int]]) -> Rule:
    """Axes are permuted: result axis i was axis ``order(call)[i]``."""

    def rule(t: Tracer, call: Call) -> Made:
        layout = t.layout(call.args[0])
        if layout is None:
            return None
        rank = call.args[0].rank
        return Layout([axis % rank for axis in order(call)].index(layout.axis), layout.atoms)

    return rule


def _swapped(call: Call) -> list[int]:
    axes = list(range(call.args[0].rank))
    one, two = (1, 0) if call.op == "t" else (call.args[1], call.args[2])
    axes[one], axes[two] = axes[two], axes[one]
    return axes


def unsqueeze(t: Tracer, call: Call) -> Made:
    layout, at = t.layout(call.args[0]), call.args[1] % call.outs[0].rank
    return None if layout is None else Layout(layout.axis + (at <= layout.axis), layout.atoms)


def expand(t: Tracer, call: Call) -> Made:
    source, out = call.args[0], call.outs[0]
    layout, new = t.layout(source), out.rank - source.rank
    t.contents.repeated[out] = {axis for axis in range(out.rank) if axis < new or source.shape[axis - new] == 1}
    return None if layout is None else Layout(layout.axis + call.outs[0].rank - call.args[0].rank, layout.atoms)


def repeat(t: Tracer, call: Call) -> Made:
    source, out = call.args[0], call.outs[0]
    layout, new = t.layout(source), out.rank - source.rank
    t.contents.repeated[out] = {axis for axis in range(out.rank) if axis < new or source.shape[axis - new] == 1}
    if layout is None:
        return None
    axis = layout.axis + call.outs[0].rank - call.args[0].rank
    return Layout(axis, np.tile(layout.atoms, call.args[1][axis]))


def repeat_interleave(t: Tracer, call: Call) -> Made:
    """``aten::repeat_interleave.self_int(self, repeats, dim)``."""
    layout = t.layout(call.args[0])
    if layout is None:
        return None
    if not isinstance(call.args[1], int) or call.args[2] is None:
        raise Unknown("repeats are computed")
    same_axis = layout.axis == call.args[2] % call.args[0].rank
    return Layout(layout.axis, np.repeat(layout.atoms, call.args[1]) if same_axis else layout.atoms)


def region(t: Tracer, call: Call) -> Made:
    """RoI pooling and grid sampling: the first argument's channels on axis 1, places from tensors without channels."""
    layout = t.layout(call.args[0])
    if any(t.layout(v) is not None for v in call.inputs[1:]):
        raise Unknown("channels choose places")
    if layout is not None and layout.axis != 1:
        raise Unknown("channels lie on another axis than 1")
    return [layout] * len(call.outs)


def constant(_t: Tracer, _call: Call) -> Made:
    """Makes a tensor whose values do not depend on channels (``empty``, ``zeros``, ``arange``)."""
    return None


def meshed(t: Tracer, call: Call) -> Made:
    if any(t.layout(value) is not None for value in call.inputs):
        raise Unknown("channels become an axis of a grid")
    return None


_UNARY = (
    "relu relu6 leaky_relu elu celu selu gelu silu mish hardtanh hardswish hardsigmoid sigmoid tanh softplus clamp clamp_min "
    "clamp_max neg abs exp expm1 log log1p log2 sqrt rsqrt square reciprocal erf sin cos clone detach alias contiguous _to_copy to "
    "native_dropout dropout bernoulli lift_fresh threshold logit floor ceil round sign log_sigmoid_forward nan_to_num "
    "softshrink hardshrink feature_dropout _conj isnan isinf logical_not bitwise_not zero fill trunc frac atan"
)
_NARY = (
    "add sub mul div maximum minimum pow rsub where masked_fill addcmul addcdiv lerp eq ne lt le gt ge logical_and logical_or "
    "bitwise_and bitwise_or floor_divide remainder fmod atan2 max_unpool2d xlogy logaddexp _prelu_kernel"
)
_SPATIAL = (
    "max_pool2d_with_indices max_pool3d_with_indices max_pool2d avg_pool1d avg_pool2d avg_pool3d "
    "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d adaptive_max_pool3d "
    "adaptive_avg_pool3d upsample_nearest1d "
    "upsample_nearest2d upsample_nearest3d _upsample_nearest_exact2d upsample_linear1d upsample_bilinear2d upsample_bicubic2d "
    "upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad1d reflection_pad2d reflection_pad3d "
    "replication_pad1d replication_pad2d "
    "replication_pad3d"
)
RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_UNARY.split(), same),
    **dict.fromkeys(_NARY.split(), elementwise),
    **dict.fromkeys(_SPATIAL.split(), spatial),
    **dict.fromkeys(("_unsafe_view", "view", "reshape", "squeeze", "_reshape_alias", "flatten"), view),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "std", "var", "var_mean", "any", "all", "prod"), reduce),
    **dict.fromkeys(("logsumexp", "linalg_vector_norm", "norm"), reduce),
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax", "cumsum", "sort", "topk", "flip", "roll"), along),
    **dict.fromkeys(("argmax", "argmin"), reduce),
    **dict.fromkeys(("max", "min"), extreme),
    **dict.fromkeys(MADE, constant),
    **dict.fromkeys(("arange", "linspace", "eye", "tril_indices"), constant),
    **dict.fromkeys(
        ("roi_align", "roi_pool", "ps_roi_align", "grid_sampler_2d", "grid_sampler_3d", "grid_sampler"), region
    ),
    **dict.fromkeys(("transpose", "t"), moved(_swapped)),
    "copy": copy,
    "constant_pad_nd": pad,
    "permute": moved(lambda call: call.args[1]),
    "unsqueeze": unsqueeze,
    "expand": expand,
    "repeat": repeat,
    "repeat_interleave": repeat_interleave,
    "meshgrid": meshed,
    **rearrange.RULES,
    **layers.RULES,
}
"""Rule of each operator, by its ATen name without namespace, overload and the in-place underscore."""
