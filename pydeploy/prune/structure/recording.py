"""Which runs of a model make up its tape: one on the example, and those that take another path.

A second run, on a batch of twice the size and in the state that the first one left, shows whether the path depends on either;
where values are read, other values and other answers are tried. All paths that were seen hold together: what is cut must be
right on each of them. Where the forward looks at its mode, training mode is one of the paths.
"""

from __future__ import annotations

import gc
import logging
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pydeploy.errors import TraceError
from pydeploy.prune.structure.recorder import NeedsValues, Recorder, followed
from pydeploy.prune.structure.running import Example
from pydeploy.prune.structure.tape import Step, Tape
from pydeploy.prune.structure.training_paths import asks_for_training
from pydeploy.prune.surgery.copying import copied
from pydeploy.prune.surgery.references import CACHED, CALLS, parts, seen
from pydeploy.prune.surgery.surroundings import Surroundings

_LOG = logging.getLogger(__name__)
_TWO_RUNS = (
    "two runs of the model differ: {}; a forward that takes another path each time has no fixed structure to prune"
)
_READINGS = 4
"""Numbers read from values that are answered otherwise, at most."""


def record(model: nn.Module, example: Example, tensors: Mapping[str, Tensor], around: Surroundings) -> Tape:
    """Run copies of `model`, in eval mode and without gradients, and write down every operator.

    Raises `TraceError` when the forward fails on real tensors too, changes a parameter, or takes another path each time.
    """
    try:
        return _recorded(_Copies(model, tensors, around, real=False), example)
    except TraceError:
        raise
    except Exception:
        _LOG.debug("the model does not run without values", exc_info=True)
    try:
        return _recorded(_Copies(model, tensors, around, real=True), example)
    except TraceError:
        raise
    except Exception as error:
        shapes = [list(shape) for shape in example.shapes]
        raise TraceError(f"the model fails on inputs of shape {shapes}: {type(error).__name__}: {error}") from error


def check_repeats(model: nn.Module, tensors: Mapping[str, Tensor], tape: Tape, around: Surroundings) -> None:
    """Raise `TraceError` when the first run, repeated, takes another path."""
    copies = _Copies(model, tensors, around, real=True)
    steps = tape.steps(0)
    try:
        again = copies.run(copies.fresh(), tape.runs[0].example)
    finally:
        copies.recorder.restore()
        around.restore()
    if again != steps:
        raise TraceError(_TWO_RUNS.format(_difference(steps, again)))


class _Copies:
    """Copies of a model that run on one tape."""

    def __init__(self, model: nn.Module, tensors: Mapping[str, Tensor], around: Surroundings, *, real: bool) -> None:
        self.model, self.tensors, self.around, self.real = model, tensors, around, real
        self.recorder = Recorder(tensors, around.foreign, real=real)

    @property
    def tape(self) -> Tape:
        return self.recorder.tape

    def fresh(self) -> nn.Module:
        """A copy around the same parameters, in surroundings as they were."""
        self.recorder.restore()
        self.around.restore()
        try:
            twin = copied(self.model, {id(t): t for t in self.tensors.values()})
        except Exception as error:
            raise TraceError(
                f"the model cannot be copied, so it cannot be cut: {type(error).__name__}: {error}"
            ) from error
        _check_parameters(
            self.tensors, twin, "a copy of the model has its own parameter '{}': its class copies it in another way"
        )
        return twin

    def run(self, twin: nn.Module, example: Example, *, fresh: bool = True, training: bool = False) -> list[Step]:
        """The path of a run that is put on the tape."""
        own = example.own() if self.real else example.meta()
        inside = set() if fresh else {id(tensor) for tensor in _tensors(twin, self.around)}
        self.recorder.record(twin, own, fresh=fresh, training=training)
        _check_parameters(
            self.tensors,
            twin,
            "the forward replaces parameter '{}'; a model that changes itself has no fixed structure",
        )
        for value, tensor in self.recorder.earlier.items():
            if id(tensor) not in inside:
                text = "is kept outside of the model, where a cut model would find it as well"
                self.tape.outside.append((value, text))
        return self.tape.steps(-1)

    def tried(self, example: Example, *, like: list[list[Step]], answers: Mapping[int, Any] | None = None) -> None:
        """A run on a fresh copy; it stays on the tape where it goes well and takes none of the known paths."""
        self.recorder.answers = answers or {}
        try:
            steps = self.run(self.fresh(), example)
        except Exception:
            _LOG.debug("a further run of the model fails", exc_info=True)
        else:
            if steps in like:
                self.tape.drop()
            else:
                like.append(steps)
        finally:
            self.recorder.answers = {}


def _recorded(copies: _Copies, example: Example) -> Tape:
    try:
        twin = copies.fresh()
        steps = copies.run(twin, example)
        _check_new(copies.tensors, twin)
        if copies.real:
            _other_values(copies, twin, example, steps)
        else:
            _other_shapes(copies, twin, example, steps)
        if copies.tape.unread(copies.tensors) or asks_for_training(copies.model):
            _other_mode(copies, example)
        return copies.tape
    finally:
        copies.recorder.restore()
        copies.around.restore()


def _other_shapes(copies: _Copies, twin: nn.Module, example: Example, steps: list[Step]) -> None:
    """Further runs where the batch or what a run leaves behind changes the path."""
    recorder = copies.recorder
    try:
        again = followed(twin, example.doubled(), recorder)
    except Exception:
        again = None
    if again is not None and again.steps == steps and not again.earlier:
        return
    copies.tape.drop()
    twin = copies.fresh()
    steps = copies.run(twin, example)
    try:
        second = copies.run(twin, example, fresh=False)
    except Exception:
        _LOG.debug("a second run of the model fails", exc_info=True)
        return
    if second == steps and not recorder.earlier:
        copies.tape.drop()
    elif (third := followed(twin, example, recorder).steps) != second:
        raise TraceError(_TWO_RUNS.format(_difference(second, third)))
    copies.tried(example.doubled(), like=[steps, second])


def _other_values(copies: _Copies, twin: nn.Module, example: Example, steps: list[Step]) -> None:
    """Further runs on other values, in the state that the first run left, and with other answers where numbers are read."""
    recorder, like = copies.recorder, [steps]
    readings = list(recorder.readings)
    other = example.other()
    try:
        second = copies.run(twin, other.doubled(), fresh=False)
    except Exception:
        _LOG.debug("the model does not run on twice the batch", exc_info=True)
        copies.tried(other, like=like)
    else:
        if second == steps and not recorder.earlier:
            copies.tape.drop()
        like.append(second)
    sites: set[Any] = set()
    for number, call in enumerate(readings):
        if call.site not in sites and len(sites) < _READINGS:
            sites.add(call.site)
            for answer in _others(call.result):
                copies.tried(example, like=like, answers={number: answer})
    copies.tape.branches = bool(readings)


def _other_mode(copies: _Copies, example: Example) -> None:
    """A run in training mode, where that does something else than eval mode, but always the same. Raises `NeedsValues` when only
    values let it run.
    """
    tape, failure = copies.tape, _trained(copies, example)
    if failure and not copies.real:
        values = _Copies(copies.model, copies.tensors, copies.around, real=True)
        failure = _trained(values, example)
        values.recorder.restore()
        copies.around.restore()
        if not failure:
            raise NeedsValues
    if failure:
        tape.untrained = f"fails on the example ({failure})"
    elif any(tape.details(-1) == tape.details(number) for number in range(len(tape.runs) - 1)):
        tape.drop()
    elif not _repeats(copies):
        tape.drop()
        tape.untrained = "takes another path each time"


def _trained(copies: _Copies, example: Example, *, doubled: bool = False) -> str:
    """Put a run in training mode on the tape: on the example or, if that fails, on twice its batch; how it failed."""
    try:
        copies.run(copies.fresh(), example, training=True)
    except Exception as error:
        _LOG.debug("the model does not run in training mode", exc_info=True)
        if not doubled and not _trained(copies, example.doubled(), doubled=True):
            return ""
        return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return ""


def _repeats(copies: _Copies) -> bool:
    """Whether the last run takes the same path again when other random numbers are drawn."""
    twin = copies.fresh()
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 (what the model may use)
    random.seed(1)
    again = copies.run(twin, copies.tape.runs[-1].example, training=True)
    copies.tape.drop()
    return again == copies.tape.steps(-1)


def _others(number: float) -> list[float]:
    """Other answers than the one that was read."""
    if isinstance(number, bool):
        return [not number]
    if isinstance(number, int):
        return [other for other in range(4) if other != number]
    far = 1e4 * (1 + abs(number))
    return [far, -far]


def _difference(one: list[Step], two: list[Step]) -> str:
    for left, right in zip(one, two, strict=False):
        if left != right:
            return f"{_place(left)} in the one, {_place(right)} in the other"
    longer = max(one, two, key=len)
    return f"{_place(longer[min(len(one), len(two))])} runs in only one of them"


def _place(step: Step) -> str:
    return f"{step[0]} at {step[1] or 'the model'}"


def _check_parameters(tensors: Mapping[str, Tensor], twin: nn.Module, text: str) -> None:
    """Raise unless the copy holds the parameters in `tensors`; a ScriptModule inside always has its own."""
    own = {id(p) for module in twin.modules() for p in module._parameters.values()}
    for name, tensor in tensors.items():
        if isinstance(tensor, nn.Parameter) and id(tensor) not in own and not _scripted(twin, name):
            raise TraceError(text.format(name))


def _scripted(model: nn.Module, name: str) -> bool:
    path = name.split(".")
    for end in range(1, len(path)):
        model = model._modules.get(path[end - 1], model)  # type: ignore[assignment]
        if isinstance(model, torch.jit.ScriptModule):
            return True
    return False


def _check_new(tensors: Mapping[str, Tensor], twin: nn.Module) -> None:
    """New buffers are as they are, the cut model will make them as well; new parameters would have other values in it."""
    known = {id(tensor) for tensor in tensors.values()}
    for name, parameter in twin.named_parameters():
        if id(parameter) not in known and not _scripted(twin, name):
            raise TraceError(
                f"the forward makes parameter '{name}' in its first run; run the model once on the example, then trace it"
            )


def _tensors(twin: nn.Module, around: Surroundings) -> Iterator[Tensor]:
    """All tensors that the copy keeps to itself."""
    known: set[int] = set()
    pending: list[Any] = [twin]
    while pending:
        value = pending.pop()
        if id(value) in known or around.has(value):
            continue
        known.add(id(value))
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, CACHED) or type(value).__module__ == CACHED.__module__:
            pending += gc.get_referents(value)  # results that a cache written in C holds
        else:
            pending += seen(value) if isinstance(value, CALLS) else parts(value)
