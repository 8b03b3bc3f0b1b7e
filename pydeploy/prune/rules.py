"""How each ATen operator moves channel layouts: one small rule per operator, in the literal table `RULES`.

A rule is ``f(tracer, args, out)``: `args` are the operator's positional arguments as recorded, `out` is its result
(a tensor, or a tuple of them). It returns the layout of the result, or raises `Unknown` with a reason: then every
channel that went in is frozen and the result carries no channels. An operator without a rule is treated the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pydeploy.prune.layout import Labels, channel_axis, has_channels, reshaped, unlabelled

if TYPE_CHECKING:
    from pydeploy.prune.trace import Tracer


class Unknown(Exception):
    """The rule cannot promise that channels stay independent; the text says why."""


Rule = Callable[["Tracer", Sequence[Any], Any], Labels]


def same(tracer: Tracer, args: Sequence[Any], _out: Any) -> Labels:
    """Elementwise on one tensor: channels pass through."""
    return tracer.labels(args[0])


def binary(tracer: Tracer, args: Sequence[Any], out: Tensor) -> Labels:
    """Elementwise on two tensors with broadcasting: channels that meet are united."""
    result = unlabelled(out.dim())
    operands = [arg for arg in args[:2] if isinstance(arg, Tensor)]
    for operand in operands:
        labels = _aligned(tracer.labels(operand), out.dim())
        if has_channels(labels):
            result = _meet(tracer, result, labels)
    for operand in operands:
        if not has_channels(tracer.labels(operand)):
            _meet_constant(tracer, result, operand)
    return result


def _aligned(labels: Labels, rank: int) -> Labels:
    return labels.reshape((1,) * (rank - labels.ndim) + labels.shape)


def _meet(tracer: Tracer, one: Labels, two: Labels) -> Labels:
    if not has_channels(one):
        return two
    if one.shape != two.shape:
        raise Unknown("channels lie on different axes")
    tracer.atoms.unite(one, two)
    return one


def _meet_constant(tracer: Tracer, labels: Labels, operand: Tensor) -> None:
    """A tensor without channels: a parameter is cut along, a size of 1 broadcasts, anything else freezes."""
    axis = channel_axis(labels)
    if axis is None:
        if has_channels(labels):
            raise Unknown("channels lie on several axes")
        return
    own = axis - (labels.ndim - operand.dim())
    if own < 0 or operand.shape[own] == 1:
        return
    view = tracer.param_view(operand)
    dim = view.dims[own] if view is not None else None
    if view is None or dim is None:
        raise Unknown("combined with a tensor that has no channels of its own")
    tracer.atoms.place(view.name, dim, labels.ravel())


def convolution(tracer: Tracer, args: Sequence[Any], out: Tensor) -> Labels:
    """``aten::convolution(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups)``."""
    source, weight, bias, stride, _, dilation, transposed, _, groups = args[:9]
    name = tracer.param_name(weight)
    if transposed or out.dim() != 4 or name is None:
        raise Unknown("transposed, not 2-D, or with a computed weight")
    incoming = _channels_on(tracer, source, 1)
    outgoing = tracer.atoms.fresh(out.shape[1])
    tracer.atoms.place(name, 0, outgoing)
    if bias is not None:
        _place_bias(tracer, bias, outgoing)
    depthwise = 1 < groups == source.shape[1]
    if groups == 1:
        if incoming is not None:
            tracer.atoms.place(name, 1, incoming)
    else:
        _tie_groups(tracer, name, incoming, outgoing, groups, depthwise)
    tracer.record("conv", name, incoming, outgoing, out.shape[2:], source.shape[1],
                  kernel=tuple(weight.shape[2:]), stride=tuple(stride), dilation=tuple(dilation),
                  groups=groups, depthwise=depthwise)  # fmt: skip
    return outgoing.reshape(1, -1, 1, 1)


def _tie_groups(
    tracer: Tracer, name: str, incoming: Labels | None, outgoing: Labels, groups: int, depthwise: bool
) -> None:
    """Grouped convolution: remove the same offset in every group; depthwise: output follows its input."""
    if depthwise:
        if incoming is None:
            tracer.atoms.freeze(outgoing, f"depthwise convolution '{name}' on values that are not channels")
        else:
            tracer.atoms.unite(np.repeat(incoming, len(outgoing) // groups), outgoing)
        return
    tracer.atoms.unite(outgoing.reshape(groups, -1), outgoing.reshape(groups, -1)[:1])
    if incoming is not None:
        per_group = incoming.reshape(groups, -1)
        tracer.atoms.unite(per_group, per_group[:1])
        tracer.atoms.place(name, 1, per_group[0])


def _channels_on(tracer: Tracer, tensor: Tensor, axis: int) -> Labels | None:
    """Atoms along `axis`, or None when the tensor has no channels. Raises when they lie elsewhere."""
    labels = tracer.labels(tensor)
    if not has_channels(labels):
        return None
    if labels.size != labels.shape[axis]:
        raise Unknown(f"channels lie on another axis than {axis}")
    return np.broadcast_to(labels.ravel(), (tensor.shape[axis],))


def _place_bias(tracer: Tracer, bias: Tensor, outgoing: Labels) -> None:
    name = tracer.param_name(bias)
    if name is None:
        raise Unknown("computed bias")
    tracer.atoms.place(name, 0, outgoing)


def linear(tracer: Tracer, source: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Labels:
    """``source @ weight``, `weight` a transposed view of a parameter of shape ``(out, in)``."""
    view = tracer.param_view(weight)
    if view is None or view.dims != (1, 0):
        raise Unknown("matrix product with something else than a parameter")
    incoming = _channels_on(tracer, source, source.dim() - 1)
    outgoing = tracer.atoms.fresh(out.shape[-1])
    tracer.atoms.place(view.name, 0, outgoing)
    if bias is not None:
        _place_bias(tracer, bias, outgoing)
    if incoming is not None:
        tracer.atoms.place(view.name, 1, incoming)
    positions = (int(np.prod(out.shape[1:-1], dtype=np.int64)), 1) if out.dim() > 2 else (1, 1)
    tracer.record("linear", view.name, incoming, outgoing, positions, source.shape[-1])
    return outgoing.reshape((1,) * (out.dim() - 1) + (-1,))


def addmm(tracer: Tracer, args: Sequence[Any], out: Tensor) -> Labels:
    return linear(tracer, args[1], args[2], args[0], out)


def mm(tracer: Tracer, args: Sequence[Any], out: Tensor) -> Labels:
    return linear(tracer, args[0], args[1], None, out)


def batch_norm(tracer: Tracer, args: Sequence[Any], out: Any) -> Labels:
    """``aten::native_batch_norm(input, weight, bias, running_mean, running_var, ...)``."""
    incoming = _channels_on(tracer, args[0], 1)
    if incoming is not None:
        for tensor in args[1:5]:
            if tensor is None:
                continue
            name = tracer.param_name(tensor)
            if name is None:
                raise Unknown("normalisation with computed statistics")
            tracer.atoms.place(name, 0, incoming)
    return tracer.labels(args[0])


def spatial(tracer: Tracer, args: Sequence[Any], out: Any) -> Labels:
    """Pooling and resizing: axes 0 and 1 stay, the others are mixed."""
    labels = tracer.labels(args[0])
    if any(size > 1 for size in labels.shape[2:]):
        raise Unknown("channels lie on a spatial axis")
    return labels


def pad(tracer: Tracer, args: Sequence[Any], out: Tensor) -> Labels:
    """``aten::constant_pad_nd(input, pad, value)``: `pad` counts pairs from the last axis."""
    labels, amounts = tracer.labels(args[0]), list(args[1])
    for axis in range(labels.ndim):
        pair = amounts[2 * (labels.ndim - 1 - axis) : 2 * (labels.ndim - axis)]
        if any(pair) and labels.shape[axis] > 1:
            raise Unknown("channels are padded")
    return labels


def mean(tracer: Tracer, args: Sequence[Any], out: Tensor) -> Labels:
    """``aten::mean(input, dims, keepdim)``, also sum and amax: over axes without channels."""
    labels = tracer.labels(args[0])
    dims = args[1] if len(args) > 1 and args[1] else range(labels.ndim)
    axes = sorted({dim % labels.ndim for dim in ([dims] if isinstance(dims, int) else dims)})
    if any(labels.shape[axis] > 1 for axis in axes):
        raise Unknown("reduces over channels")
    keepdim = len(args) > 2 and bool(args[2])
    return labels if keepdim else labels.reshape([s for axis, s in enumerate(labels.shape) if axis not in axes])


def view(tracer: Tracer, args: Sequence[Any], out: Tensor) -> Labels:
    labels = reshaped(tracer.labels(args[0]), tuple(args[0].shape), tuple(out.shape))
    if labels is None:
        raise Unknown("splits the channel axis")
    return labels


def permute(tracer: Tracer, args: Sequence[Any], out: Tensor) -> Labels:
    return np.transpose(tracer.labels(args[0]), tuple(args[1]))


def transpose(tracer: Tracer, args: Sequence[Any], out: Tensor) -> Labels:
    return np.swapaxes(tracer.labels(args[0]), args[1], args[2])


def matrix_transpose(tracer: Tracer, args: Sequence[Any], out: Tensor) -> Labels:
    return np.transpose(tracer.labels(args[0]))


def unsqueeze(tracer: Tracer, args: Sequence[Any], out: Tensor) -> Labels:
    return np.expand_dims(tracer.labels(args[0]), args[1] % out.dim())


def expand(tracer: Tracer, args: Sequence[Any], out: Tensor) -> Labels:
    return _aligned(tracer.labels(args[0]), out.dim())


def cat(tracer: Tracer, args: Sequence[Any], out: Tensor) -> Labels:
    """``aten::cat(tensors, dim)``: along the channel axis layouts are joined, along others united."""
    tensors, axis = args[0], (args[1] if len(args) > 1 else 0) % out.dim()
    layouts = [tracer.labels(tensor) for tensor in tensors]
    if not any(has_channels(labels) for labels in layouts):
        return unlabelled(out.dim())
    if any(labels.size != labels.shape[axis] for labels in layouts):
        raise Unknown("joins along an axis without channels")
    wide = [np.broadcast_to(labels, [t.shape[axis] if a == axis else 1 for a in range(out.dim())])
            for labels, t in zip(layouts, tensors, strict=True)]  # fmt: skip
    return np.concatenate(wide, axis=axis)


def constant(tracer: Tracer, args: Sequence[Any], out: Any) -> Labels:
    """Makes a tensor whose values do not depend on channels (``empty``, ``zeros``, ``arange``)."""
    first = out[0] if isinstance(out, (tuple, list)) else out
    return unlabelled(first.dim() if isinstance(first, torch.Tensor) else 0)


ELEMENTWISE = (
    "relu relu6 leaky_relu elu celu selu gelu silu mish hardtanh hardswish hardsigmoid sigmoid tanh softplus clamp clamp_min "
    "clamp_max neg abs exp log sqrt rsqrt square reciprocal erf sin cos clone detach alias contiguous _to_copy to native_dropout "
    "dropout bernoulli lift_fresh threshold logit floor round sign"
)

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE.split(), same),
    **dict.fromkeys(("add", "sub", "mul", "div", "maximum", "minimum", "pow", "rsub"), binary),
    **dict.fromkeys(("max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d"), spatial),
    **dict.fromkeys(("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d"), spatial),
    **dict.fromkeys(("_unsafe_view", "view", "reshape", "squeeze"), view),
    **dict.fromkeys(("mean", "sum", "amax", "amin"), mean),
    **dict.fromkeys(("empty", "zeros", "ones", "full", "arange"), constant),
    "convolution": convolution,
    "native_batch_norm": batch_norm,
    "_native_batch_norm_legit_no_training": batch_norm,
    "addmm": addmm,
    "mm": mm,
    "constant_pad_nd": pad,
    "permute": permute,
    "transpose": transpose,
    "t": matrix_transpose,
    "unsqueeze": unsqueeze,
    "expand": expand,
    "cat": cat,
}
"""Rule of each operator, by its ATen name without namespace, overload and the in-place underscore."""
