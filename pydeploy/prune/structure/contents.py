"""What is known of the contents of values: equal entries, zeros, zeros where channels are removed.

Constants made to a computed size (``torch.zeros(y.shape)``) have no channels of their own, and still go with any cut when all
their entries are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from pydeploy.prune.structure.layout import Layout
from pydeploy.prune.structure.params import ParamView
from pydeploy.prune.structure.tape import Call, Value

MADE = frozenset(
    ("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like",
     "full_like", "empty_like", "scalar_tensor", "rand", "randn", "rand_like", "randn_like")
)  # fmt: skip
"""Make a tensor of equal entries, or of random ones: one channel of it is like another."""
_ZEROS = frozenset(("zeros", "zeros_like", "new_zeros", "zero"))
_FILLED = {"full": 1, "full_like": 1, "new_full": 2, "fill": 1}
"""Place of the value among the arguments."""
_SHAPED = (
    "clone contiguous detach alias lift_fresh _to_copy to view _unsafe_view reshape _reshape_alias flatten squeeze unsqueeze "
    "permute transpose t expand repeat slice select split split_with_sizes chunk unbind index_select roll flip narrow"
)
_ZERO_AT_ZERO = (
    "relu leaky_relu elu selu celu gelu silu mish hardswish tanh erf sin atan expm1 log1p softshrink hardshrink neg abs sqrt "
    "square sign trunc ceil floor round"
)
_EVEN = frozenset(
    f"{_SHAPED} {_ZERO_AT_ZERO} add sub mul div pow rsub sigmoid exp log rsqrt reciprocal clamp clamp_min clamp_max hardtanh "
    "softplus hardsigmoid fill zero maximum minimum mean amax amin sum eq ne lt le gt ge logical_not where masked_fill".split(
        " "
    )
)
"""Operators that make equal entries of equal entries."""
_ZERO_KEEPING = frozenset(
    f"{_SHAPED} {_ZERO_AT_ZERO} sum mean amax amin cat stack zero native_dropout dropout pixel_shuffle pixel_unshuffle channel_shuffle "
    "native_channel_shuffle max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d "
    "reflection_pad2d replication_pad2d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d maximum minimum".split(
        " "
    )
)
"""Operators whose result is zero where all their arguments are."""


@dataclass
class Contents:
    """Facts about values, by value."""

    uniform: set[Value] = field(default_factory=set)
    """Equal entries everywhere."""
    nothing: set[Value] = field(default_factory=set)
    """Zeros everywhere."""
    silent: set[Value] = field(default_factory=set)
    """Zero where channels are silenced, so that sums over channels do not miss them."""
    repeated: dict[Value, set[int]] = field(default_factory=dict)
    """Axes along which one entry is repeated, to a computed size."""

    def note(self, call: Call, layouts: Mapping[Value, Layout], views: Mapping[Value, ParamView]) -> None:
        """Facts about the results of a call, once their layouts are known."""
        inputs = call.inputs
        even = call.op in _EVEN and bool(inputs) and all(value in self.uniform for value in inputs)
        if even or call.op in MADE:
            self.uniform.update(call.outs)
        filled = call.op in _FILLED and call.args[_FILLED[call.op]] == 0
        if call.op in _ZEROS or filled or (inputs and _zero(call, self.nothing.__contains__)):
            self.nothing.update(call.outs)
        if (
            call.op in _EVEN
            and len(inputs) == 1
            and inputs[0] in self.repeated
            and inputs[0].shape == call.outs[0].shape
        ):
            self.repeated[call.outs[0]] = self.repeated[inputs[0]]
        labelled = [out for out in call.outs if out in layouts]
        if labelled and (_zero(call, self._silent) or self._layer(call, views)):
            self.silent.update(labelled)

    def _silent(self, value: Value) -> bool:
        return value in self.silent or value in self.nothing

    def _layer(self, call: Call, views: Mapping[Value, ParamView]) -> bool:
        """Whether channels of a layer's result are zero when its parameters are."""
        if call.op not in ("convolution", "native_batch_norm"):
            return False
        made_of = [value for value in call.args[1:3] if value is not None and value not in self.nothing]
        enough = len(made_of) == 2 or (call.op == "convolution" and bool(made_of))
        return enough and all(value in views and views[value].zero for value in made_of)

    def forget(self, values: Collection[Value]) -> None:
        """Something was written into the memory of `values`."""
        for facts in (self.uniform, self.nothing, self.silent):
            facts.difference_update(values)
        for value in values:
            self.repeated.pop(value, None)


def _zero(call: Call, zero: Callable[[Value], bool]) -> bool:
    """Whether entries of the result are zero where those of the arguments that are `zero` are."""
    if call.op == "mul":
        return any(map(zero, call.inputs))
    if call.op == "div":
        return isinstance(call.args[0], Value) and zero(call.args[0])
    if call.op == "pow":
        power = call.args[1]
        return isinstance(call.args[0], Value) and zero(call.args[0]) and isinstance(power, int | float) and power > 0
    if call.op in ("add", "sub"):
        return all(isinstance(arg, Value) and zero(arg) for arg in call.args[:2])
    if call.op in ("hardtanh", "clamp", "clamp_min", "clamp_max"):
        low, high = _bounds(call)
        return zero(call.args[0]) and low <= 0 <= high
    if call.op == "constant_pad_nd":
        return zero(call.args[0]) and not call.args[2]
    return call.op in _ZERO_KEEPING and bool(call.inputs) and all(map(zero, call.inputs))


def _bounds(call: Call) -> tuple[float, float]:
    """Limits of a clamp; one that is a tensor is unknown."""
    given = [
        arg if isinstance(arg, (int, float)) else float("nan") if arg is not None else None for arg in call.args[1:3]
    ]
    low, high = (*given, None, None)[:2]
    if call.op == "clamp_max":
        low, high = None, low
    return (-float("inf") if low is None else low), (float("inf") if high is None else high)
