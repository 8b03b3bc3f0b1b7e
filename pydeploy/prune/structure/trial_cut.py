"""A trial cut: run the cut model's own code on shapes alone and compare every tensor with what the layouts predict.

This finds what no operator shows: sizes written into the forward (``view(n, 2, 58, h, w)``), numbers computed from widths
(``(c // heads) ** -0.5``), branches that depend on widths. The cut model follows the dense tape call by call; at the first
difference the trial stops and says where.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pydeploy.prune.structure.decisions import FREE
from pydeploy.prune.structure.layout import UNUSED
from pydeploy.prune.structure.operators import NUMBER, PLUMBING
from pydeploy.prune.structure.running import run, to_meta
from pydeploy.prune.structure.shapes import run_meta
from pydeploy.prune.structure.state import Tracer
from pydeploy.prune.structure.tape import Call, Run, Tape, Value, flat, mapped, one_device, schema_of


@dataclass(frozen=True)
class Failure:
    """Where the cut model left the predicted path: the number of the call, and how."""

    index: int
    text: str
    other_operator: bool = False
    """Another operator ran: branches of the forward depend on widths, or on chance."""
    fewest: bool = False
    """Only the smallest widths fail."""
    zeros: Mapping[int, list[int | Value]] = field(default_factory=dict)
    """Parts of a concatenation that are zeros of another size than predicted, and whose channels they may follow."""


class _Left(BaseException):
    """Ends a trial; no model may catch it."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.text)
        self.failure = failure


def attempt(make: Callable[[], nn.Module], tape: Tape, tracer: Tracer, alive: NDArray[np.bool_]) -> Failure | None:
    """Run cut models, which `make` gives on the meta device, along `tape`; `alive` says which atoms are kept. None: all went
    as predicted.
    """
    mode = _Trial(tape, tracer, alive)
    small: nn.Module | None = None
    for part in tape.runs:
        mode.begin(part)
        small = make() if part.fresh or small is None else small
        failure = _attempted(small, part, mode)
        if failure is not None:
            return failure
    return None


def _attempted(small: nn.Module, part: Run, mode: _Trial) -> Failure | None:
    try:
        run(small, part.example.meta(), mode, training=part.training)
    except _Left as left:
        return left.failure
    except Exception as error:
        if mode.pending is not None:
            return mode.pending
        index = min(mode.index, part.end - 1)
        return Failure(
            index, f"fails when channels are cut: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
        )
    if mode.pending is not None:
        return mode.pending
    if any(call.op not in PLUMBING for call in mode.tape.calls[mode.index : part.end]):
        return Failure(mode.index, "does not run when channels are cut", other_operator=True)
    return None


class _Trial(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its base untyped
    def __init__(self, tape: Tape, tracer: Tracer, alive: NDArray[np.bool_]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape, self.tracer = tape, tracer
        # By atom instead of representative, and entries of no channel (-1 and -2: the last ones) always stay.
        self.alive = np.append(alive[tracer.atoms.roots(np.arange(tracer.atoms.count, dtype=np.int64))], (True, True))
        self.counts: dict[int, int] = {}
        """Kept channels by the layout's `id`: the tracer holds all layouts."""
        self.index = self.end = 0
        self.pending: Failure | None = None
        """A view of another size than predicted; it counts if the next real operator's size is wrong, too."""

    def begin(self, part: Run) -> None:
        """Follow that run next."""
        self.index, self.end, self.pending = part.begin, part.end, None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = schema_of(func).name
        if not self._aligned(name):
            return (
                func(*args, **kwargs)
                if one_device(args, kwargs)
                else func(*mapped(args, to_meta), **mapped(kwargs, to_meta))
            )
        call = self.tape.calls[self.index]
        problem = self._other_numbers(call, args)
        out = self._run(func, call, args, kwargs)
        problem = problem or self._other_shapes(call, out)
        if name == "cat" and (zeros := self._following(call, args)):
            problem = problem or Failure(self.index, "joins zeros of a size that is cut")
            problem = replace(problem, zeros=zeros)
        if name in PLUMBING:
            self.pending = self.pending or problem
        elif problem is not None:
            raise _Left(self.pending or problem)
        elif any(value in self.tracer.layouts for value in call.outs):
            self.pending = None
        self.index += 1
        return out

    def _aligned(self, name: str) -> bool:
        """Move on to the call of the tape that runs now; False for a copy or view of which the tape knows nothing.

        Whether a reshape is a view or a copy depends on strides, and those on axes of length 1, so such calls may come and go.
        """
        calls = self.tape.calls
        if name in PLUMBING:
            return self.index < self.end and calls[self.index].op == name
        while self.index < self.end and calls[self.index].op in PLUMBING:
            self.index += 1
        found = calls[self.index].op if self.index < self.end else ""
        if found != name:
            at = min(self.index, self.end - 1)
            raise _Left(
                self.pending or Failure(at, f"'{name}' runs in its place when channels are cut", other_operator=True)
            )
        return True

    def _run(self, func: Any, call: Call, args: Any, kwargs: Any) -> Any:
        if not one_device(args, kwargs):
            args, kwargs = mapped(args, to_meta), mapped(kwargs, to_meta)
        if call.result is not None and not call.outs and any(isinstance(a, Tensor) and a.is_meta for a in args):
            return call.result
        dynamic = torch.Tag.dynamic_output_shape in func.tags or torch.Tag.data_dependent_output in func.tags
        try:
            return run_meta(func, args, kwargs)
        except (RuntimeError, NotImplementedError):
            if not dynamic and func.namespace == "aten":
                raise
        # What depends on values keeps the size that it had in the dense run.
        made = [torch.empty(self._expected(value), dtype=value.dtype, device="meta") for value in call.outs]
        return made[0] if len(func._schema.returns) == 1 and len(made) == 1 else made

    def _other_numbers(self, call: Call, args: Any) -> Failure | None:
        """Numbers that the arithmetic uses must not follow the widths."""
        integers = call.op in NUMBER
        for dense, cut in zip(call.args, args, strict=False):
            number = isinstance(dense, float) or (integers and isinstance(dense, int))
            if (
                number
                and isinstance(cut, int | float)
                and not math.isclose(dense, cut, rel_tol=1e-9)
                and dense == dense
            ):
                return Failure(self.index, f"uses a number computed from the width ({dense:g}, {cut:g} when cut)")
        if call.op == "native_group_norm" and call.args[0] in self.tracer.layouts:
            atoms = self.tracer.layouts[call.args[0]].atoms
            groups = call.args[6]
            kept = self._kept(atoms.reshape(groups, -1)[:, 0]) if groups > 1 else 1
            if args[6] != kept:
                return Failure(self.index, f"has a fixed number of groups ({groups})")
        if call.op == "slice" and call.args[0] in self.tracer.layouts:
            layout, source = self.tracer.layouts[call.args[0]], call.args[0]
            if (call.args[1] or 0) % source.rank == layout.axis and call.args[2]:
                begin = self._kept(layout.atoms[: call.args[2] % source.shape[layout.axis]])
                size = args[0].shape[layout.axis]
                if args[2] % size != begin % size:
                    return Failure(self.index, "begins at a fixed channel")
        return None

    def _other_shapes(self, call: Call, out: Any) -> Failure | None:
        layouts = self.tracer.layouts
        if not any(v in layouts for v in call.inputs) and not any(v in layouts for v in call.outs):
            return None
        tracer = self.tracer
        results = [leaf for leaf in flat(out) if isinstance(leaf, Tensor)]
        if len(results) != len(call.outs):
            return Failure(
                self.index, f"gives {len(results)} tensors instead of {len(call.outs)} when channels are cut"
            )
        for number, (value, tensor) in enumerate(zip(call.outs, results, strict=True)):
            if number and value not in tracer.layouts:
                continue  # statistics and the like that nobody reads
            expected = self._expected(value)
            if (
                not self._fits(value, tensor.shape, expected)
                and value not in tracer.views
                and value not in tracer.contents.uniform
            ):
                sizes = f"{list(tensor.shape)} where the cut model needs {list(expected)}"
                return Failure(self.index, f"its size is fixed in the code: {sizes}")
        return None

    def _fits(self, value: Value, shape: Sequence[int], expected: tuple[int, ...]) -> bool:
        """Whether the shape is the expected one; where zeros lie among the channels, the reading weights tell how many."""
        layout = self.tracer.layouts.get(value)
        if layout is None or not (layout.atoms == UNUSED).any() or len(shape) != len(expected):
            return tuple(shape) == expected
        return all(
            one == two for axis, (one, two) in enumerate(zip(shape, expected, strict=True)) if axis != layout.axis
        )

    def _following(self, call: Call, args: Any) -> dict[int, list[int | Value]]:
        """For parts made of zeros to a size that is cut in another way than so far believed: other parts, or else earlier values,
        with as many channels before and after, the last ones first.
        """
        layout = self.tracer.layouts.get(call.outs[0])
        found: dict[int, list[int | Value]] = {}
        parts = [pair for pair in zip(call.args[0], args[0], strict=True) if pair[0].rank == call.outs[0].rank]
        begin = 0
        if layout is None:
            return {}
        for number, (part, tensor) in enumerate(parts):
            dense, cut = part.shape[layout.axis], tensor.shape[layout.axis]
            atoms = layout.atoms[begin : begin + dense]
            begin += dense
            if part in self.tracer.layouts or part not in self.tracer.contents.nothing or self._kept(atoms) == cut:
                continue
            if self.tracer.decisions.zeros.get((call.site, number), [])[:1] != [FREE]:
                near: list[int | Value] = [n for n, (other, _) in enumerate(parts) if self._counts(other, dense, cut)]
                found[number] = near or self._earlier(dense, cut)
        return found

    def _counts(self, value: Value, dense: int, cut: int) -> bool:
        """Whether `value` has so many channels before and after the cut."""
        layout = self.tracer.layouts.get(value)
        return layout is not None and (len(layout.atoms), self._kept(layout.atoms)) == (dense, cut)

    def _earlier(self, dense: int, cut: int) -> list[int | Value]:
        """Earlier values with so many channels, one for each set of them."""
        layouts, roots = self.tracer.layouts, self.tracer.atoms.roots
        values = [v for call in self.tape.calls[: self.index] for v in call.outs if self._counts(v, dense, cut)]
        apart = {roots(layouts[value].atoms).tobytes(): value for value in values}
        return list[int | Value](reversed(apart.values()))[:_CANDIDATES]

    def _expected(self, value: Value) -> tuple[int, ...]:
        layout = self.tracer.layouts.get(value)
        if layout is None:
            return value.shape
        kept = self.counts.get(id(layout))
        if kept is None:
            kept = self.counts[id(layout)] = self._kept(layout.atoms)
        return (*value.shape[: layout.axis], kept, *value.shape[layout.axis + 1 :])

    def _kept(self, atoms: NDArray[np.int64]) -> int:
        return int(np.count_nonzero(self.alive[atoms]))


_CANDIDATES = 6
