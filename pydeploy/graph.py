"""What may be pruned and what costs time, as names and numbers: no tensors, no torch.

* A `Group` is a set of channels that exist or vanish together, wherever they appear. Any choice of at least
  `min_width` channels (mostly one) per prunable group is a valid model; what cannot promise that is frozen.
* An `Op` is a layer whose cost depends on widths (convolution, linear).

Which channels of each group stay is a `pydeploy.plan.Plan`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydeploy.errors import DataError
from pydeploy.files import parsed, write_json

Widths = Mapping[str, int]
"""Number of kept channels of each prunable group."""


ROLES = ("filter", "bias", "input", "scale", "shift")
"""What an operator takes a group's entries of a parameter for: outputs of a layer's weight (the filters), something added to
the channels, inputs of a layer's weight, the scale and shift of a norm over each channel alone. Other entries are cut along and no more."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Where a group's channels lie in one tensor.

    Channel ``i`` occupies entries ``offset + i*step ... + repeat - 1`` of axis `dim` of `param`
    (a ``state_dict`` name). Concat is an offset, flatten a repeat, a channel shuffle a step.
    """

    param: str
    dim: int
    offset: int = 0
    repeat: int = 1
    step: int = 1
    roles: tuple[str, ...] = ()
    """Which of `ROLES` the entries have; several where a tensor is shared. Empty in graphs of version 0.1."""

    def entries(self, channels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Axis entries of `channels`, shape ``(len(channels) * repeat,)``."""
        first = self.offset + channels[:, None] * self.step
        return np.asarray((first + np.arange(self.repeat)).ravel(), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Group:
    """Channels that are removed together; `frozen` says why none may be removed ('' = prunable). At least `min_width` must stay."""

    name: str
    width: int
    slices: tuple[Slice, ...]
    frozen: str = ""
    min_width: int = 1
    align: int = 1
    inexact: str = ""
    """Why the other channels' values change when some are cut ('' = they do not): a normalization over channels."""


@dataclass(frozen=True, slots=True)
class Extent:
    """A channel count as a function of group widths: ``fixed + sum(repeat * width[group])``."""

    fixed: int
    terms: tuple[tuple[str, int], ...] = ()

    def at(self, widths: Widths) -> int:
        """The channel count at `widths`."""
        return self.fixed + sum(repeat * widths[group] for group, repeat in self.terms)


@dataclass(frozen=True, slots=True, order=True)
class OpKey:
    """Everything a layer's latency depends on besides the target. Layers with equal keys share samples.

    `tail` names what runs between this layer and the next one (normalization, activation, residual
    add, pooling): engines fuse it into the layer or run it right after, so its time belongs here.
    """

    kind: str
    cin: int
    cout: int
    h: int
    w: int
    kernel: tuple[int, ...] = (1, 1)
    stride: tuple[int, ...] = (1, 1)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1
    tail: str = ""

    def __str__(self) -> str:
        kernel = "x".join(map(str, self.kernel))
        extra = f" groups={self.groups}" if self.groups > 1 else ""
        extra += f" dilation={self.dilation[0]}" if any(d != 1 for d in self.dilation) else ""
        tail = f" +{self.tail}" if self.tail else ""
        stride = self.stride[0] if self.stride else 1
        return f"{self.kind}{kernel}/s{stride} cin={self.cin} cout={self.cout} at {self.h}x{self.w}{extra}{tail}"

    def to_list(self) -> list[Any]:
        """A JSON form that `from_list` reads back; also the table's stable text key."""
        return [self.kind, self.cin, self.cout, self.h, self.w, list(self.kernel), list(self.stride),
                list(self.dilation), self.groups, self.tail]  # fmt: skip

    @classmethod
    def from_list(cls, row: Sequence[Any]) -> OpKey:
        kind, cin, cout, h, w, kernel, stride, dilation, groups, tail = row
        return cls(kind, cin, cout, h, w, tuple(kernel), tuple(stride), tuple(dilation), groups, tail)


@dataclass(frozen=True, slots=True)
class Op:
    """A layer whose cost depends on widths. `h`, `w` are the *output* height and width."""

    name: str
    kind: str
    weight: str
    cin: Extent
    cout: Extent
    h: int
    w: int
    kernel: tuple[int, ...] = (1, 1)
    stride: tuple[int, ...] = (1, 1)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1
    depthwise: bool = False
    tail: str = ""

    @property
    def scope(self) -> tuple[str, ...]:
        """Groups that this layer's cost depends on, in order of first use, without repetition."""
        return tuple(dict.fromkeys(name for name, _ in self.cin.terms + self.cout.terms))

    def key(self, widths: Widths) -> OpKey:
        """Table key of the layer at `widths`."""
        cin, cout = self.cin.at(widths), self.cout.at(widths)
        groups = cin if self.depthwise else self.groups
        return OpKey(self.kind, cin, cout, self.h, self.w, self.kernel, self.stride, self.dilation, groups, self.tail)

    def macs(self, widths: Widths) -> int:
        """Multiply-accumulates: H_out * W_out * C_out * C_in/groups * kernel area (no bias, no BN)."""
        key = self.key(widths)
        per_position = key.cout * (key.cin // key.groups) * int(np.prod(self.kernel))
        return self.h * self.w * per_position


@dataclass(frozen=True)
class Graph:
    """Groups and layers of one model at one input shape."""

    groups: tuple[Group, ...]
    ops: tuple[Op, ...]
    params: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Shape of every parameter and buffer of the traced model, by ``state_dict`` name."""
    learnable: int = 0
    """Number of entries in learnable parameters (buffers not counted)."""
    inputs: tuple[tuple[int, ...], ...] = ()
    numbers: Mapping[str, tuple[Extent, ...]] = field(default_factory=dict)
    """Integers in which modules keep their widths, ``{module.attribute: one extent for each item}``."""

    idle: tuple[str, ...] = ()
    """Layers that no engine runs: nobody reads their result, or it depends on parameters alone."""

    @cached_property
    def by_name(self) -> dict[str, Group]:
        return {group.name: group for group in self.groups}

    @cached_property
    def shortcuts(self) -> frozenset[str]:
        """Prunable groups that several layers write, such as residual streams; depthwise layers only pass channels on."""
        depthwise = {op.weight for op in self.ops if op.depthwise}
        made = {group.name: {s.param for s in group.slices if "filter" in s.roles} for group in self.prunable}
        return frozenset(name for name, params in made.items() if len(params - depthwise) > 1)

    @property
    def prunable(self) -> tuple[Group, ...]:
        return tuple(group for group in self.groups if not group.frozen)

    @property
    def frozen(self) -> dict[str, str]:
        """Why each frozen group is frozen: ``{group: 'operator at location: reason'}``."""
        return {group.name: group.frozen for group in self.groups if group.frozen}

    @property
    def widths(self) -> dict[str, int]:
        """Dense width of every group, the frozen ones included."""
        return {group.name: group.width for group in self.groups}

    def at(self, widths: Widths) -> dict[str, int]:
        """The width of every group where those named in `widths` have these, and all others are dense."""
        return {**self.widths, **widths}

    def keys(self, widths: Widths) -> list[OpKey]:
        """Table keys of all layers at `widths` (groups not named stay dense), in the order of `ops`."""
        full = self.at(widths)
        return [op.key(full) for op in self.ops]

    def macs(self, widths: Widths | None = None) -> int:
        """Multiply-accumulates of one forward pass at the traced input shape."""
        full = self.at(widths or {})
        return sum(op.macs(full) for op in self.ops)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the structure; a plan carries it so that it is never applied to another model."""
        text = json.dumps(self._json(roles=False), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        return self._json(roles=True)

    def _json(self, *, roles: bool) -> dict[str, Any]:
        numbers = {name: [_plain(e) for e in extents] for name, extents in self.numbers.items()}
        return {"schema": 1, "groups": [{**_plain(g), "slices": [_slice_json(s, roles=roles) for s in g.slices]} for g in self.groups],
                "ops": [{**_plain(o), "cin": _plain(o.cin), "cout": _plain(o.cout)} for o in self.ops],
                "params": {k: list(v) for k, v in self.params.items()}, "learnable": self.learnable,
                "inputs": [list(s) for s in self.inputs], **({"numbers": numbers} if numbers else {}),
                **({"idle": list(self.idle)} if self.idle else {})}  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Graph:
        try:
            groups = tuple(Group(**{**g, "slices": tuple(map(_slice, g["slices"]))}) for g in data["groups"])
            ops = tuple(_op_from_json(o) for o in data["ops"])
            params = {k: tuple(v) for k, v in data["params"].items()}
            numbers = {k: tuple(_extent(e) for e in v) for k, v in data.get("numbers", {}).items()}
            return cls(groups, ops, params, data["learnable"], tuple(tuple(s) for s in data["inputs"]), numbers,
                       tuple(data.get("idle", ())))  # fmt: skip
        except (KeyError, TypeError) as error:
            raise DataError(
                f"not a graph file: {error}; expected the JSON that 'pydeploy trace --out' writes"
            ) from None

    def save(self, path: Path) -> None:
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> Graph:
        return parsed(path, cls.from_json)


def _plain(record: Any) -> dict[str, Any]:
    """The fields of a record; what `asdict` makes of ten thousand slices takes longer than finding them."""
    return {name: getattr(record, name) for name in record.__slots__}


def _slice_json(piece: Slice, *, roles: bool) -> dict[str, Any]:
    data = _plain(piece)
    names = data.pop("roles")
    return {**data, "roles": list(names)} if roles and names else data


def _slice(data: Mapping[str, Any]) -> Slice:
    return Slice(**{**data, "roles": tuple(data.get("roles", ()))})


def _extent(data: Mapping[str, Any]) -> Extent:
    return Extent(data["fixed"], tuple((name, repeat) for name, repeat in data["terms"]))


def _op_from_json(data: Mapping[str, Any]) -> Op:
    pairs = {key: tuple(data[key]) for key in ("kernel", "stride", "dilation")}
    return Op(**{**data, **pairs, "cin": _extent(data["cin"]), "cout": _extent(data["cout"])})
