"""`trace`: run the model once and find which channels can be removed, and which layers cost time.

1. The run is recorded, operator by operator (`tape`); anything that runs can be recorded.
2. Channel layouts move through the recording by one rule per operator (`rules`). An operator without a rule freezes what
   it touches; it never guesses.
3. Trial cuts run the model's own code at smaller widths, on shapes alone, and compare every tensor with the prediction
   (`trial`). What leaves the predicted path is frozen with the reason, until a trial passes.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pydeploy.errors import ConfigError, TraceError
from pydeploy.graph import Graph, Group
from pydeploy.plan import Plan
from pydeploy.prune.structure.decisions import FREE, Decisions
from pydeploy.prune.structure.groups import Assembly, WidthRules, assemble
from pydeploy.prune.structure.propagate import follow
from pydeploy.prune.structure.recording import check_repeats, record
from pydeploy.prune.structure.running import Example, to_meta
from pydeploy.prune.structure.state import Tracer
from pydeploy.prune.structure.tape import Call, Tape
from pydeploy.prune.structure.trial_cut import Failure, attempt
from pydeploy.prune.structure.unread_numbers import unread
from pydeploy.prune.structure.width_numbers import followed, learn
from pydeploy.prune.surgery.apply import replaced
from pydeploy.prune.surgery.kept_entries import kept_entries
from pydeploy.prune.surgery.module_numbers import set_numbers
from pydeploy.prune.surgery.surroundings import Surroundings


def trace(model: nn.Module, example: Any = (), *, example_kwargs: Mapping[str, Any] | None = None,
          exclude: Sequence[str] = (), min_width: int = 1, align: int | Mapping[str, int] = 1,
          deployed: Callable[[Any], Any] | None = None) -> Graph:  # fmt: skip
    """Groups of channels that can be removed, and the layers that cost time, of `model` run on `example`.

    `example` is a tensor or a tuple of the forward's arguments, `example_kwargs` its keyword arguments; batch 1 is enough.
    `exclude` are name patterns of layers whose output channels stay; `min_width` and `align` (one number, or one by pattern
    of group names) go into the groups for the solvers. `deployed` picks from the forward's result what engines give: layers
    of the rest, such as auxiliary heads, are cut along and take no time (``graph.idle``). Copies of the model run in eval mode
    without gradients, in training mode too where the forward looks at it; the model and what its hooks and functions see are
    left as they were. What cannot be cut is in ``graph.frozen``, with operator, location and reason.

    Raises `TraceError` when the forward fails, changes parameters or takes another path each time, when a copy of the model
    uses the model itself (through a global name), or when the model is scripted, wrapped for distributed training, or holds
    meta, sparse or quantized tensors.
    """
    rules = _checked(exclude, min_width, align)
    run = replace(_arguments(example, example_kwargs), deployed=deployed)
    with torch.inference_mode(mode=False), torch.no_grad():
        around = Surroundings(model)
        try:
            tensors = _own_tensors(model)
            tape = record(model, run, tensors, around)
            graph = _found(model, tensors, tape, around, rules)
        finally:
            changed = around.restore(model=True)
    if changed:
        raise TraceError(f"a copy of the model wrote into '{changed[0]}' of the model itself; {around.advice}")
    return graph


def _arguments(example: Any, kwargs: Mapping[str, Any] | None) -> Example:
    if isinstance(example, Mapping):
        raise ConfigError(
            "the example is a dict; give keyword arguments as example_kwargs={...}, one dict argument as example=(dict,)"
        )
    args = (example,) if isinstance(example, Tensor) else tuple(example)
    return Example(args, dict(kwargs or {}))


def _found(
    model: nn.Module, tensors: Mapping[str, Tensor], tape: Tape, around: Surroundings, rules: WidthRules
) -> Graph:
    """Follow channels and try cuts until one goes as predicted."""
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    learnable = sum(p.numel() for p in model.parameters())
    decisions = Decisions()
    while True:
        tracer = follow(tape, decisions)
        _separate_memory(tracer, tensors)
        found = assemble(tracer, shapes, learnable, tape.runs[0].example.shapes, rules)
        found = found.with_numbers(tracer.atoms, followed(tracer, model, tape))
        later, doubtful = unread(model, tracer, found)
        later = {place: labels for place, labels in later.items() if not _refused(decisions, place)}
        failure = _tried(model, tensors, tape, around, tracer, found.with_numbers(tracer.atoms, later))
        if failure is None:
            _warn(doubtful, tape.unread(tensors), tape)
            return found.with_numbers(tracer.atoms, later).graph
        if later:
            _refuse(decisions, tape.calls[failure.index].path, later)
            continue
        if failure.other_operator and tape.real:
            check_repeats(model, tensors, tape, around)
        _learn(decisions, failure, model, tape, tracer, found)


def _refused(decisions: Decisions, place: str) -> bool:
    return "*" in decisions.refused or place.rpartition(".")[0] in decisions.refused


def _refuse(decisions: Decisions, path: str, later: Mapping[str, object]) -> None:
    """Leave the numbers of the modules on `path` as they are, or all where these have none."""
    above = {path[:end] for end in [0, *(i for i, c in enumerate(path) if c == "."), len(path)]}
    decisions.refused |= above if any(place.rpartition(".")[0] in above for place in later) else {"*"}


def _warn(doubtful: Sequence[str], unseen: Sequence[str], tape: Tape) -> None:
    if doubtful:
        places = ", ".join(f"'{place}'" for place in doubtful)
        warnings.warn(f"{places}: as large as several widths that are cut apart, and read by methods besides the forward; "
                      "set these numbers of the cut model yourself", stacklevel=4)  # fmt: skip
    names = ", ".join(f"'{name}'" for name in unseen[:4])
    if unseen and tape.branches:
        warnings.warn(f"the forward branches on values, and no run of it read {names}; where such layers run in the cut model, "
                      "what they meet may have been cut: exclude it, or trace an example that uses them", stacklevel=4)  # fmt: skip
    if tape.untrained:
        only = f", and no other run read {names}" if unseen else ""
        warnings.warn(f"in training mode the forward {tape.untrained}{only}; what it does only there may not fit the cut model: "
                      "trace an example that it can train on, or cut a model without those parts", stacklevel=4)  # fmt: skip


def _checked(exclude: Sequence[str], min_width: int, align: int | Mapping[str, int]) -> WidthRules:
    steps = [align] if isinstance(align, int) else list(align.values())
    if min_width < 1 or any(step < 1 for step in steps):
        raise ConfigError(f"min_width is {min_width} and align {align}, expected at least 1")
    return WidthRules((exclude,) if isinstance(exclude, str) else tuple(exclude), min_width, align)


def _own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by its ``state_dict`` name."""
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError(
            "the model is a ScriptModule, whose layers cannot be replaced; trace the Python model that it was made from"
        )
    for path, module in model.named_modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            inner = f"{path}.module".lstrip(".")
            raise TraceError(
                f"'{path or 'the model'}' is a DistributedDataParallel, whose gradients a copy would exchange as well; "
                f"trace and cut its '{inner}', then wrap the cut model"
            )
    tensors = {name: t for name, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise TraceError(
                f"'{name}' is a meta tensor without values; load the weights first: "
                "model.load_state_dict(weights, assign=True), or build the model on a device"
            )
        if tensor.is_quantized:
            raise TraceError(f"'{name}' is quantized; trace the float model and quantize the cut one")
        if tensor.layout != torch.strided:
            raise TraceError(
                f"'{name}' is a sparse tensor ({tensor.layout}); make it dense first ('tensor.to_dense()')"
            )
    return tensors


def _separate_memory(tracer: Tracer, tensors: Mapping[str, Tensor]) -> None:
    """Different parameters on the same memory would no longer share it after a cut."""
    owners: dict[int, str] = {}
    shared: set[str] = set()
    seen: set[int] = set()
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        if memory and id(tensor) not in seen and memory in owners:
            shared |= {name, owners[memory]}
        owners.setdefault(memory, name)
        seen.add(id(tensor))
    for (param, _), atoms in tracer.atoms.places.items():
        if param in shared:
            tracer.atoms.freeze(atoms, f"'{param}' shares its memory with another parameter")


def _tried(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    tape: Tape,
    around: Surroundings,
    tracer: Tracer,
    found: Assembly,
) -> Failure | None:
    """Cut to about half of all widths, then to as few channels of each as may stay."""
    rng = np.random.default_rng(0)
    groups = found.graph.prunable
    halves = {
        g.name: np.sort(rng.permutation(g.width)[:count]) for g, count in zip(groups, _halves(groups), strict=True)
    }
    fewest = {g.name: np.arange(g.width - g.min_width, g.width) for g in groups}
    for kept in (halves, fewest) if halves else ():
        plan = Plan({name: tuple(channels.tolist()) for name, channels in kept.items()}, "")

        def cut(plan: Plan = plan) -> nn.Module:
            around.restore()
            return _on_meta(model, tensors, found.graph, plan)

        failure = attempt(cut, tape, tracer, _alive(tracer, found, kept))
        # PyTorch itself takes other operators for axes of length 1; what branches on widths shows at half of them.
        excused = failure is not None and failure.other_operator and kept is fewest
        if failure is not None and not excused and not _only_values_lack(failure, tape, tracer, found):
            return replace(failure, fewest=kept is fewest)
    return None


def _halves(groups: Sequence[Group]) -> list[int]:
    """About half of each group, as far as possible other halves where groups are of one width, to tell them apart."""
    turns: Counter[int] = Counter()
    counts = []
    for group in groups:
        turn, turns[group.width] = turns[group.width], turns[group.width] + 1
        near = (turn + 1) // 2 * (1 if turn % 2 else -1) % (group.width // 4 + 1)
        counts.append(min(max(-(-group.width // 2) + near, group.min_width), group.width))
    return counts


def _only_values_lack(failure: Failure, tape: Tape, tracer: Tracer, found: Assembly) -> bool:
    """Whether the trial left a path that depends on values, behind everything that is cut."""
    rest = range(failure.index, len(tape.calls))
    return tape.real and failure.other_operator and not any(_cuts(tracer, found, tape, i) for i in rest)


def _alive(tracer: Tracer, found: Assembly, kept: Mapping[str, NDArray[np.int64]]) -> NDArray[np.bool_]:
    """Whether each atom stays; what is in no group does."""
    begins = np.cumsum([0, *(group.width for group in found.graph.groups)])
    stays = np.ones(
        begins[-1] + 1, dtype=np.bool_
    )  # channels of all groups, one after the other; the last one is no channel
    for begin, group in zip(begins[:-1], found.graph.groups, strict=True):
        if group.name in kept:
            stays[begin : begin + group.width] = False
            stays[begin + kept[group.name]] = True
    channel = np.where(found.home >= 0, begins[found.home] + found.rank, -1)
    return np.asarray(stays[channel][: tracer.atoms.count])


def _on_meta(model: nn.Module, tensors: Mapping[str, Tensor], graph: Graph, plan: Plan) -> nn.Module:
    """The cut model without values."""
    cut = kept_entries(graph, plan)
    small: dict[str, Tensor] = {}
    for name, tensor in {id(t): (name, t) for name, t in reversed(list(tensors.items()))}.values():  # tied ones once
        sizes = [
            size if kept is None else len(kept)
            for size, kept in zip(tensor.shape, cut.get(name, [None] * tensor.dim()), strict=True)
        ]
        meta = torch.empty(sizes, dtype=tensor.dtype, device="meta") if name in cut else to_meta(tensor.detach())
        small[name] = (
            nn.Parameter(meta, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else meta
        )
    made = replaced(model, tensors, small)
    set_numbers(made, graph.numbers, graph.at(plan.widths))
    return made


def _learn(
    decisions: Decisions, failure: Failure, model: nn.Module, tape: Tape, tracer: Tracer, found: Assembly
) -> None:
    """Turn the choice at the failing call, or let a number of its module follow, or freeze what it touches, or, when nothing
    there is cut, its module, or all.
    """
    call = tape.calls[failure.index]
    options = tracer.choices.get(call.site, 0)
    if decisions.turns.get(call.site, 0) + 1 < options:
        decisions.turns[call.site] = decisions.turns.get(call.site, 0) + 1
        return
    if _follow_zeros(decisions, failure, call):
        return
    # A slice up to more channels than there are does not run at all.
    if (call.op == "slice" or not failure.other_operator) and learn(tracer, model, call):
        return
    rest = range(failure.index, len(tape.calls))
    same_site = [i for i, c in enumerate(tape.calls) if c.site == call.site]
    inside = [i for i, c in enumerate(tape.calls) if c.path == call.path or c.path.startswith(f"{call.path}.")]
    wider = [rest] if tape.real and failure.other_operator else [same_site, inside]
    for indices in ([failure.index], *wider, range(len(tape.calls))):
        if any(_cuts(tracer, found, tape, i) for i in indices):
            chosen = same_site if indices == [failure.index] else indices
            if failure.fewest and indices is not rest and not decisions.pairs.issuperset(chosen):
                own = {tape.calls[i].site[0] for i in chosen}  # what one layer cannot, no layer of its class can
                decisions.pairs.update(i for i, c in enumerate(tape.calls) if c.site[0] in own)
                return
            text = failure.text if failure.index in chosen else f"{call.location} {failure.text}"
            for i in chosen:
                decisions.blocked.setdefault(i, text)
            return
    raise AssertionError("a trial failed although nothing was cut")


def _follow_zeros(decisions: Decisions, failure: Failure, call: Call) -> bool:
    """Let zeros in a concatenation follow the next channels that fit; False when none are left."""
    for number, fitting in failure.zeros.items():
        known = decisions.zeros.get((call.site, number))
        decisions.zeros[call.site, number] = [*fitting, FREE] if known is None else known[1:] or [FREE]
    return bool(failure.zeros)


def _cuts(tracer: Tracer, found: Assembly, tape: Tape, index: int) -> bool:
    """Whether a channel that the call reads or makes is in a prunable group."""
    call = tape.calls[index]
    frozen = np.array([bool(group.frozen) for group in found.graph.groups] + [True])
    for value in (*call.inputs, *call.outs):
        layout = tracer.layouts.get(value)
        if layout is not None:
            roots = tracer.atoms.roots(layout.atoms)
            if not frozen[found.home[roots[roots >= 0]]].all():
                return True
    return False
