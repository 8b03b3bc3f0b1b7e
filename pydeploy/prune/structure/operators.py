"""What the tracer knows of every ATen operator, in one table: how channels move through it and what it does to zeros.

Operators go by their ATen name without namespace, overload and the in-place underscore. `KINDS` says which rule of
`pydeploy.prune.structure.rules` moves channels through one (`moves` where it only moves entries); the sets below hold what
else is true of it. An operator that is not in the table freezes what it touches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_TABLE: tuple[tuple[str, str, str], ...] = (
    # rule, facts, operators
    ("entrywise", "even zero", "relu leaky_relu elu selu celu gelu silu mish hardswish tanh erf sin atan expm1 log1p softshrink"),
    ("entrywise", "even zero", "hardshrink neg abs sqrt square sign trunc ceil floor round maximum minimum to"),
    ("entrywise", "even", "sigmoid exp log rsqrt reciprocal softplus hardsigmoid logical_not eq ne lt le gt ge where masked_fill fill"),
    ("entrywise", "even bounded", "clamp clamp_min clamp_max hardtanh"),
    ("entrywise", "even number", "mul div pow"),
    ("entrywise", "even number adds", "add sub rsub"),
    ("entrywise", "number", "floor_divide remainder fmod"),
    ("entrywise", "even zero plumbing folded", "clone contiguous detach alias lift_fresh _to_copy"),
    ("entrywise", "even zero zeros", "zero"),
    ("entrywise", "zero folded", "dropout native_dropout"),
    ("entrywise", "", "relu6 log2 cos bernoulli threshold logit log_sigmoid_forward nan_to_num feature_dropout _conj isnan isinf"),
    ("entrywise", "", "bitwise_not frac addcmul addcdiv lerp logical_and logical_or bitwise_and bitwise_or atan2 xlogy logaddexp"),
    ("entrywise", "", "_prelu_kernel"),
    ("copy", "", "copy"),
    ("view", "even zero", "flatten"),
    ("view", "even zero folded", "reshape"),
    ("view", "even zero plumbing", "_reshape_alias"),
    ("view", "even zero plumbing folded", "view _unsafe_view"),
    ("squeeze", "even zero plumbing folded", "squeeze"),
    ("unsqueeze", "even zero plumbing folded", "unsqueeze"),
    ("permute", "even zero plumbing folded", "permute"),
    ("transpose", "even zero plumbing folded", "transpose t"),
    ("expand", "even zero plumbing folded", "expand"),
    ("repeat", "even zero", "repeat"),
    ("interleave", "even zero", "repeat_interleave"),
    ("slice", "even zero folded", "slice"),
    ("narrow", "even zero", "narrow"),
    ("split", "even zero folded", "split"),
    ("split", "even zero", "split_with_sizes unsafe_split chunk"),
    ("unbind", "even zero folded", "unbind"),
    ("select", "even zero folded", "select"),
    ("flip", "even zero", "flip"),
    ("as_strided", "plumbing", "as_strided"),
    ("cat", "zero", "cat"),
    ("stack", "zero", "stack"),
    ("index", "", "index"),
    ("index_select", "even zero", "index_select"),
    ("index_put", "", "index_put"),
    ("pixel_shuffle", "zero", "pixel_shuffle"),
    ("pixel_unshuffle", "zero", "pixel_unshuffle"),
    ("channel_shuffle", "zero", "channel_shuffle native_channel_shuffle"),
    ("im2col", "zero", "im2col"),
    ("unfold", "even zero", "unfold"),
    ("spatial", "zero", "max_pool2d_with_indices max_pool3d_with_indices max_pool2d avg_pool1d avg_pool2d avg_pool3d"),
    ("spatial", "zero", "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d"),
    ("spatial", "zero", "adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d"),
    ("spatial", "zero", "_upsample_nearest_exact2d upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d"),
    ("spatial", "zero", "_upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad1d reflection_pad2d reflection_pad3d"),
    ("spatial", "zero", "replication_pad1d replication_pad2d replication_pad3d"),
    ("unpool", "", "max_unpool2d"),
    ("pad", "", "constant_pad_nd"),
    ("region", "", "roi_align roi_pool ps_roi_align grid_sampler_2d grid_sampler_3d grid_sampler"),
    ("reduce", "even zero sums", "sum"),
    ("reduce", "sums", "linalg_vector_norm norm"),
    ("reduce", "even zero averages", "mean"),
    ("reduce", "averages", "std var var_mean std_mean"),
    ("reduce", "even zero", "amax amin"),
    ("reduce", "", "any all prod logsumexp argmax argmin"),
    ("extreme", "", "max min"),
    ("along", "even zero", "roll"),
    ("along", "", "_softmax _log_softmax _safe_softmax cumsum sort topk"),
    ("made", "alike zeros folded", "zeros new_zeros"),
    ("made", "alike zeros", "zeros_like"),
    ("made", "alike folded", "ones full empty"),
    ("made", "alike plumbing", "scalar_tensor"),
    ("made", "alike", "new_ones new_full new_empty ones_like full_like empty_like rand randn rand_like randn_like"),
    ("made", "folded", "arange"),
    ("made", "", "linspace eye tril_indices"),
    ("meshgrid", "", "meshgrid"),
    ("convolution", "", "convolution"),
    ("deform_conv2d", "", "deform_conv2d"),
    ("batch_norm", "folded", "native_batch_norm _native_batch_norm_legit_no_training"),
    ("batch_norm", "", "_native_batch_norm_legit cudnn_batch_norm"),
    ("layer_norm", "", "native_layer_norm"),
    ("rms_norm", "", "_fused_rms_norm"),
    ("group_norm", "", "native_group_norm"),
    ("addmm", "", "addmm baddbmm"),
    ("mm", "", "mm bmm"),
    ("embedding", "", "embedding"),
    ("attention", "", "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention"),
    ("attention", "", "_scaled_dot_product_efficient_attention"),
)  # fmt: skip

KINDS: Mapping[str, str] = {op: kind for kind, _, ops in _TABLE for op in ops.split()}
"""The rule of each operator."""


def _having(fact: str) -> frozenset[str]:
    return frozenset(op for _, facts, ops in _TABLE if fact in facts.split() for op in ops.split())


EVEN = _having("even")
"""Make equal entries of equal entries."""
ZERO = _having("zero")
"""Their result is zero where all their arguments are; for more of them, depending on numbers, see `zeros`."""
BOUNDED = _having("bounded")
"""Limit entries to a range that their arguments give."""
NUMBER = _having("number")
"""Compute with the numbers among their arguments, whole ones included."""
ADDS = _having("adds")
"""What is added is a bias."""
SUMS = _having("sums")
"""Reduce axes in a way that zeros do not change."""
AVERAGES = _having("averages")
"""Reduce axes in a way that depends on how many entries there are."""
ALIKE = _having("alike")
"""Make a tensor of equal entries, or of random ones: one channel of it is like another."""
ZEROS = _having("zeros")
"""Make zeros."""
PLUMBING = _having("plumbing")
"""Views and copies: whether these run depends on strides, and those on axes of length 1, so they may come and go."""
FOLDED = _having("folded")
"""An engine folds these away, so they do not appear in a layer's tail."""
FILLED: Mapping[str, int] = {"full": 1, "full_like": 1, "new_full": 2, "fill": 1}
"""Place of the value among the arguments of operators that fill a tensor with it."""
STATISTICS: Mapping[str, tuple[int, ...]] = {
    "native_batch_norm": (3, 4),
    "cudnn_batch_norm": (3, 4),
    "_native_batch_norm_legit": (3, 4),
}
"""Places of arguments that are written although the schema does not say so."""


def random(op: str) -> bool:
    """Whether it draws random numbers."""
    return op.startswith(("rand", "bernoulli", "normal", "native_dropout"))


def reduced_axes(op: str, args: Sequence[Any], rank: int) -> set[int]:
    """Axes of the first argument, which has `rank` of them, over which a reduction runs."""
    given = (*args, None, None)[2 if op in ("linalg_vector_norm", "norm") else 1]  # behind the order of a norm
    if isinstance(given, int) and not isinstance(given, bool):
        return {given % rank}
    axes = given if isinstance(given, list | tuple) and given else range(rank)
    return {axis % rank for axis in axes}
