"""Dispatch modes that write down what a model does while its own Python code runs, so whatever runs can be recorded.

Activations are meta tensors (shapes without values) where the model allows it, so nothing is computed; operators on constants
and parameters alone really run. A model that needs values to run is recorded on real tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pydeploy.errors import TraceError
from pydeploy.prune.structure.operators import PLUMBING, STATISTICS
from pydeploy.prune.structure.running import Example, Where, leaves, run, to_meta
from pydeploy.prune.structure.shapes import run_meta
from pydeploy.prune.structure.tape import (
    Call,
    Run,
    Schema,
    Step,
    Tape,
    Value,
    flat,
    mapped,
    one_device,
    schema_of,
)

_MARK = "_pydeploy_value"


class NeedsValues(Exception):
    """The model reads the contents of a tensor, so shapes alone do not run it."""


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its base untyped
    """Writes a `Tape`; `tensors` are the model's own by ``state_dict`` name (tied ones share the first name).

    `foreign` tells of tensors and modules, by `id`, whose use shows that a copy still uses the model itself.
    """

    def __init__(self, tensors: Mapping[str, Tensor], foreign: Mapping[int, str], *, real: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.real, self.foreign = real, foreign
        self.params = {id(tensor): name for name, tensor in reversed(list(tensors.items()))}
        self.owners = {tensor.untyped_storage().data_ptr(): (name, tensor) for name, tensor in tensors.items()}
        self.memory = [(tensor, tensor.detach()) for tensor in tensors.values()]
        """The model's own tensors, and what they hold: a forward may give them other memory (``tensor.data = ...``)."""
        self.tape = Tape(real=real)
        self.where = Where(foreign)
        self.known: dict[int, tuple[Tensor, Value]] = {}
        """Values of tensors that the run did not make: parameters, constants, inputs."""
        self.earlier: dict[Value, Tensor] = {}
        """What this run reads of what earlier ones made."""
        self.saved: dict[int, tuple[Tensor, Tensor]] = {}
        """Tensors that runs wrote to and did not make, and what was in them."""
        self.answers: Mapping[int, Any] = {}
        """What to answer where the model reads a number, by the number of the reading."""
        self.readings: list[Call] = []

    def record(self, model: nn.Module, example: Example, *, fresh: bool, training: bool = False) -> Run:
        """Run `model` and append what it does to the tape."""
        begin, count = len(self.tape.calls), len(self.tape.runs)
        self.where, self.earlier, self.readings = Where(self.foreign, count), {}, []
        if fresh:
            self.known.clear()
        for tensor in example.tensors:
            self.value(tensor).data = True
        try:
            output = run(model, example, self, self.where, training=training)
        except BaseException:
            del self.tape.calls[begin:]
            raise
        # Before the run ends: what is read later counts as kept from one run to the next.
        self.tape.outputs += [self.value(leaf) for leaf in leaves(output)]
        given = output if example.deployed is None else example.deployed(output)
        self.tape.deployed |= {self.value(leaf) for leaf in leaves(given)}
        self.tape.runs.append(Run(example, begin, len(self.tape.calls), fresh, training))
        return self.tape.runs[-1]

    def made(self, tensor: Tensor) -> bool:
        """Whether a recorded run made `tensor`."""
        mark = getattr(tensor, _MARK, None)
        return mark is not None and mark[0] is self.tape

    def restore(self) -> None:
        """Give the tensors that runs wrote to their memory and contents back."""
        for tensor, held in self.memory:
            if tensor.data_ptr() != held.data_ptr() or tensor.shape != held.shape:
                tensor.data = held
        for tensor, before in self.saved.values():
            tensor.data.copy_(before)

    def value(self, tensor: Tensor) -> Value:
        made = getattr(tensor, _MARK, None)
        if made is not None and made[0] is self.tape:
            if made[1] != len(self.tape.runs):
                self.earlier[made[2]] = tensor
            return made[2]  # type: ignore[no-any-return]
        known = self.known.get(id(tensor))
        if known is None:
            if id(tensor) in self.foreign:
                raise TraceError(self.foreign[id(tensor)])
            value = Value(tuple(tensor.shape), tensor.dtype, self.params.get(id(tensor), ""))
            value.learnt = bool(value.param) and isinstance(tensor, nn.Parameter)
            known = self.known[id(tensor)] = (tensor, value)
        return known[1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        schema = schema_of(func)
        ordered = schema.ordered(args, kwargs)
        noted = [mapped(arg, self.value) for arg in ordered]
        written = [noted[i] for i in schema.written if isinstance(noted[i], Value)]
        if written or schema.name in STATISTICS:
            self._check_writes(schema, ordered)
        out = func(*args, **kwargs) if self.real else self._run(func, schema.written, args, kwargs)
        return self._note(schema.name, schema.view, noted, written, out)

    def _run(self, func: Any, written: Sequence[int], args: Any, kwargs: Any) -> Any:
        if not one_device(args, kwargs):
            if any(isinstance(args[i], Tensor) and not args[i].is_meta for i in written if i < len(args)):
                raise NeedsValues
            args, kwargs = mapped(args, to_meta), mapped(kwargs, to_meta)
        return run_meta(func, args, kwargs)

    def _check_writes(self, schema: Schema, arguments: Sequence[Any]) -> None:
        """Remember what is in tensors that are written; no parameter may be."""
        for target in (arguments[i] for i in schema.written or STATISTICS[schema.name]):
            if not isinstance(target, Tensor) or target.is_meta:
                continue
            memory = target.untyped_storage().data_ptr()
            owner = self.owners.get(memory) if memory else None
            if owner is None and self.made(target):
                continue
            if owner is not None and isinstance(owner[1], nn.Parameter):
                raise TraceError(
                    f"the forward changes parameter '{owner[0]}' (at {self.where.path or 'the model'}); "
                    "a model that changes its weights while it runs has no fixed structure to prune"
                )
            whole = target if owner is None else owner[1]
            if id(whole) not in self.saved:
                self.saved[id(whole)] = (whole, whole.detach().clone())

    def _note(self, name: str, view: bool, noted: list[Any], written: list[Value], out: Any) -> Any:
        results = [leaf for leaf in flat(out) if isinstance(leaf, Tensor)]
        base = next((v for v in noted if isinstance(v, Value)), None) if view else None
        outs = []
        for tensor in results:
            value = Value(tuple(tensor.shape), tensor.dtype)
            if base is not None:
                value.base = base.base or base
                value.base.shared = value.shared = True
            elif written:
                value.base, value.shared = written[0].base or written[0], written[0].shared
            if id(tensor) in self.known:
                self.known[id(tensor)] = (tensor, value)
            else:
                setattr(tensor, _MARK, (self.tape, len(self.tape.runs), value))
            outs.append(value)
        path, site = self.where.next()
        call = Call(name, noted, outs, path, site, written, None if results else out)
        self.tape.calls.append(call)
        if self.real:
            return self._answer(call, out)
        return out

    def _answer(self, call: Call, out: Any) -> Any:
        """What a number that the model reads is, or what it is told in this run."""
        depends = any(value.data for value in call.inputs)
        for value in call.outs:
            value.data = depends
        if not depends or not isinstance(call.result, (bool, int, float)):
            return out
        self.readings.append(call)
        call.result = self.answers.get(len(self.readings) - 1, out)
        return call.result


class Steps(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Only the path of a run on shapes alone, and whether it reads what recorded runs made: the cheaper half of a recording."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder = recorder
        self.where = Where(recorder.foreign)
        self.steps: list[Step] = []
        self.earlier = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        schema = schema_of(func)
        path, _ = self.where.next()
        params = []
        for leaf in (*flat(args), *flat(list(kwargs.values()))):
            if isinstance(leaf, Tensor):
                self.earlier = self.earlier or self.recorder.made(leaf)
                name = self.recorder.params.get(id(leaf))
                if name is not None and isinstance(leaf, nn.Parameter):
                    params.append(name)
        if schema.written or schema.name in STATISTICS:
            self.recorder._check_writes(schema, schema.ordered(args, kwargs))
        if schema.name not in PLUMBING:
            self.steps.append((schema.name, path, tuple(params)))
        return self.recorder._run(func, schema.written, args, kwargs)


def followed(model: nn.Module, example: Example, recorder: Recorder) -> Steps:
    """The path of `model` on `example`, on shapes alone."""
    mode = Steps(recorder)
    run(model, example.meta(), mode, mode.where)
    return mode
