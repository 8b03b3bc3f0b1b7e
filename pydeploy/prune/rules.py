"""How each ATen operator moves channel layouts: one small rule per operator, in the literal table `RULES`.

A rule is ``f(tracer, call)``: it returns the layout of the first result, or a list with one per result, or raises
`Unknown` with a reason: then every channel that went in is frozen and the results carry none. An operator without a rule is
treated the same way. Layers with weights are in `layers`, the rest is here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pydeploy.prune import layers
from pydeploy.prune.layout import FIXED, Layout, Unknown, reshaped
from pydeploy.prune.tape import Call

if TYPE_CHECKING:
    from pydeploy.prune.propagate import Tracer

Made = Layout | None | list[Layout | None]
Rule = Callable[["Tracer", Call], Made]


def elementwise(t: Tracer, call: Call) -> Made:
    """Entry by entry on any number of tensors with broadcasting: channels that meet are united."""
    return layers.met(t, call.inputs, call.outs[0].rank)


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
    given = call.args[2] if call.op == "linalg_vector_norm" or call.op == "norm" else call.args[1] if len(call.args) > 1 else None
    axes = {d % source.rank for d in ([given] if isinstance(given, int) else given or range(source.rank))}
    if layout.axis in axes:
        raise Unknown("reduces over channels")
    kept = [axis for axis in range(source.rank) if axis not in axes]
    axis = layout.axis if call.outs[0].rank == source.rank else kept.index(layout.axis)
    return [Layout(axis, layout.atoms)] * len(call.outs)


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
    layout = t.layout(call.args[0])
    return None if layout is None else Layout(layout.axis + call.outs[0].rank - call.args[0].rank, layout.atoms)


def repeat(t: Tracer, call: Call) -> Made:
    layout = t.layout(call.args[0])
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


def cat(t: Tracer, call: Call) -> Made:
    """``aten::cat(tensors, dim)``: along the channel axis layouts are joined, along others united."""
    out = call.outs[0]
    axis = (call.args[1] if len(call.args) > 1 else 0) % out.rank
    parts = [part for part in call.args[0] if part.rank == out.rank]
    layouts = [t.layout(part) for part in parts]
    axes = {layout.axis for layout in layouts if layout is not None}
    if not axes:
        return None
    if axes != {axis}:
        if axis in axes:
            raise Unknown("channels lie on different axes")
        return layers.met(t, parts, out.rank)
    for part in parts:
        if part in t.views:
            t.freeze(part, f"{call.location}: joined with channels")
    pieces = [np.full(p.shape[axis], FIXED, dtype=np.int64) if layout is None else layout.atoms
              for p, layout in zip(parts, layouts, strict=True)]  # fmt: skip
    return Layout(axis, np.concatenate(pieces))


def stack(t: Tracer, call: Call) -> Made:
    """``aten::stack(tensors, dim)``: a new axis; channels of equal number are united."""
    out = call.outs[0]
    at = (call.args[1] if len(call.args) > 1 else 0) % out.rank
    met = layers.met(t, call.args[0], out.rank - 1)
    return None if met is None else Layout(met.axis + (at <= met.axis), met.atoms)


def split(t: Tracer, call: Call) -> Made:
    """Cut along an axis: along the channels only into equal parts, whose channels are united part by part."""
    source = call.args[0]
    layout = t.layout(source)
    axis = (call.args[2] if len(call.args) > 2 else 0) % source.rank
    if layout is None or layout.axis != axis or len(call.outs) == 1:
        return [layout] * len(call.outs)
    sizes = {out.shape[axis] for out in call.outs}
    if len(sizes) > 1:
        raise Unknown(f"splits {source.shape[axis]} channels into unequal parts")
    parts = layout.atoms.reshape(len(call.outs), -1)
    t.atoms.unite(parts, parts[:1])
    return [Layout(axis, part) for part in parts]


def slice_(t: Tracer, call: Call) -> Made:
    """``aten::slice(self, dim, start, end, step)``: along the channels one of n equal parts."""
    source, out = call.args[0], call.outs[0]
    layout = t.layout(source)
    axis = (call.args[1] or 0) % source.rank
    if layout is None or layout.axis != axis:
        return layout
    size, part, start = source.shape[axis], out.shape[axis], (call.args[2] or 0) % (source.shape[axis] or 1)
    if part == size:
        return layout
    if call.args[4] != 1 or part == 0 or size % part or start % part:
        raise Unknown("takes an irregular part of the channels")
    parts = layout.atoms.reshape(size // part, part)
    t.atoms.unite(parts, parts[:1])
    return Layout(axis, parts[start // part])


def unbind(t: Tracer, call: Call) -> Made:
    layout, axis = t.layout(call.args[0]), call.args[1] % call.args[0].rank
    if layout is None:
        return None
    if layout.axis == axis:
        raise Unknown("takes single channels")
    return [Layout(layout.axis - (axis < layout.axis), layout.atoms)] * len(call.outs)


def index(t: Tracer, call: Call) -> Made:
    """``aten::index(self, indices)`` on axes without channels."""
    source, out = call.args[0], call.outs[0]
    layout = t.layout(source)
    if any(t.layout(i) is not None for i in call.args[1] if i is not None):
        raise Unknown("channels choose entries")
    if layout is None:
        return None
    at = [axis for axis, i in enumerate(call.args[1]) if i is not None]
    if layout.axis in at or not at:
        raise Unknown("takes chosen channels")
    wide = out.rank - (source.rank - len(at))
    begin = at[0] if at == list(range(at[0], at[-1] + 1)) else 0
    rest = [axis for axis in range(source.rank) if axis not in at]
    place = rest.index(layout.axis)
    return Layout(place + wide if place >= begin else place, layout.atoms)


def index_select(t: Tracer, call: Call) -> Made:
    layout = t.layout(call.args[0])
    if layout is not None and layout.axis == call.args[1] % call.args[0].rank:
        raise Unknown("takes chosen channels")
    return layout


def as_strided(t: Tracer, call: Call) -> Made:
    """The identity, as pooling uses it to change the memory format of a 1x1 map."""
    source, size, stride, offset = call.args[0], tuple(call.args[1]), call.args[2], call.args[3]
    long = [axis for axis, n in enumerate(size) if n > 1]
    if size != source.shape or offset or len(long) > 1 or any(stride[axis] != 1 for axis in long):
        raise Unknown("reads memory in an order of its own")
    return t.layout(source)


def pixel_shuffle(t: Tracer, call: Call) -> Made:
    """Channel c gathers r*r entries: blocks of r*r channels live together."""
    layout = t.layout(call.args[0])
    if layout is None:
        return None
    axis = call.args[0].rank - 3
    if layout.axis != axis:
        raise Unknown("channels lie on a spatial axis")
    blocks = layout.atoms.reshape(-1, call.args[1] ** 2)
    t.atoms.unite(blocks, blocks[:, :1])
    return Layout(axis, np.ascontiguousarray(blocks[:, 0]))


def pixel_unshuffle(t: Tracer, call: Call) -> Made:
    layout = t.layout(call.args[0])
    if layout is not None and layout.axis != call.args[0].rank - 3:
        raise Unknown("channels lie on a spatial axis")
    return None if layout is None else Layout(layout.axis, np.repeat(layout.atoms, call.args[1] ** 2))


def channel_shuffle(t: Tracer, call: Call) -> Made:
    """Channels of equal number in all parts are united, then the order is changed."""
    layout = t.layout(call.args[0])
    if layout is None:
        return None
    if layout.axis != 1:
        raise Unknown("channels lie on a spatial axis")
    grid = layout.atoms.reshape(call.args[1], -1)
    t.atoms.unite(grid, grid[:1])
    return Layout(1, np.ascontiguousarray(grid.T.ravel()))


def im2col(t: Tracer, call: Call) -> Made:
    """``aten::im2col(self, kernel_size, ...)``: each channel becomes one row per kernel entry."""
    layout = t.layout(call.args[0])
    if layout is None:
        return None
    axis = call.args[0].rank - 3
    if layout.axis != axis:
        raise Unknown("channels lie on a spatial axis")
    return Layout(axis, np.repeat(layout.atoms, call.outs[0].shape[axis] // len(layout.atoms)))


def unfold(t: Tracer, call: Call) -> Made:
    layout = t.layout(call.args[0])
    if layout is not None and layout.axis == call.args[1] % call.args[0].rank:
        raise Unknown("works along the channels")
    return layout


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
    "bitwise_and bitwise_or floor_divide remainder fmod atan2 max_unpool2d xlogy logaddexp"
)
_SPATIAL = (
    "max_pool2d_with_indices max_pool3d_with_indices max_pool2d avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d adaptive_max_pool3d adaptive_avg_pool3d upsample_nearest1d upsample_nearest2d "
    "upsample_nearest3d _upsample_nearest_exact2d upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d "
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d "
    "replication_pad3d"
)
UNIFORM = frozenset("zeros ones full empty new_zeros new_ones new_full new_empty zeros_like ones_like full_like empty_like scalar_tensor".split())
"""Make a tensor of equal entries: one channel of it is like another."""

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
    **dict.fromkeys(UNIFORM, constant),
    **dict.fromkeys(("arange", "linspace", "rand", "randn", "eye", "tril_indices"), constant),
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split", "chunk"), split),
    **dict.fromkeys(("unbind", "select"), unbind),
    **dict.fromkeys(("roi_align", "roi_pool", "ps_roi_align", "grid_sampler_2d", "grid_sampler_3d", "grid_sampler"), region),
    **dict.fromkeys(("pixel_shuffle",), pixel_shuffle),
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), channel_shuffle),
    **dict.fromkeys(("transpose", "t"), moved(_swapped)),
    "copy": copy,
    "pixel_unshuffle": pixel_unshuffle,
    "constant_pad_nd": pad,
    "permute": moved(lambda call: call.args[1]),
    "unsqueeze": unsqueeze,
    "expand": expand,
    "repeat": repeat,
    "repeat_interleave": repeat_interleave,
    "cat": cat,
    "stack": stack,
    "slice": slice_,
    "index": index,
    "index_select": index_select,
    "im2col": im2col,
    "unfold": unfold,
    "as_strided": as_strided,
    "meshgrid": meshed,
    **layers.RULES,
}
"""Rule of each operator, by its ATen name without namespace, overload and the in-place underscore."""
