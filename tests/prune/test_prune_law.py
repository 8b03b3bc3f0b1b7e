"""The law of `trace` and `apply`: what is accepted without a word is cut as if its channels were silenced, on other data and
batches, and neither the model nor what it sees is changed or shared.
"""

from __future__ import annotations

import collections
import functools
import gc
import random
import types
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from made import MADE
from oracle import masked_norms, random_plan, randomize, silence, tensors_of
from pydeploy.prune.structure.trace import trace
from pydeploy.prune.surgery.apply import apply
from wrapped import WRAPPED

SHAPE = (2, 3, 8, 8)


def built(make: Any) -> nn.Module:
    torch.manual_seed(0)
    return randomize(make()).double().eval()


def reached(root: Any) -> dict[int, Any]:
    """Objects that can change and that the garbage collector reaches from `root`, code and classes left out."""
    found: dict[int, Any] = {}
    pending = [root]
    while pending:
        value = pending.pop()
        if id(value) in found or isinstance(
            value, (type, types.ModuleType, types.CodeType, str, int, float, torch.dtype)
        ):
            continue
        found[id(value)] = value
        if isinstance(value, types.FunctionType):  # neither its globals nor its annotations
            pending += [value.__closure__, value.__defaults__, value.__kwdefaults__, vars(value)]
        elif hasattr(value, "cache_parameters"):
            pending.append(value.__wrapped__)
        elif isinstance(value, weakref.ref):
            pending.append(value())
        else:
            pending += gc.get_referents(value)
        if isinstance(value, Tensor):
            pending += vars(value).values()
    kinds = (dict, list, set, collections.deque, nn.Module, Tensor)
    own = {key: v for key, v in found.items() if isinstance(v, kinds)}
    return {key: v for key, v in own.items() if isinstance(v, (nn.Module, Tensor)) or len(v)}


def fingerprint(value: Any, known: dict[int, tuple[int, Any]] | None = None) -> Any:
    """Everything in a model as plain values: tensors by content, objects by their parts."""
    known = {} if known is None else known
    if isinstance(value, (str, int, float, type(None), type, types.ModuleType)):
        return value
    if id(value) in known:
        return ("again", known[id(value)][0])
    known[id(value)] = (len(known), value)  # kept alive, so that no other object gets its id
    if isinstance(value, Tensor):
        content = None if value.is_meta else value.detach().clone().tolist()
        return (id(value), str(value.dtype), value.device.type, value.requires_grad, tuple(value.shape), content)
    if isinstance(value, dict):
        return {str(k): fingerprint(v, known) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset, collections.deque)):
        return [fingerprint(v, known) for v in value]
    if isinstance(value, types.FunctionType):
        cells = [c.cell_contents for c in value.__closure__ or ()]
        return (
            id(value),
            fingerprint(cells, known),
            fingerprint(value.__defaults__, known),
            fingerprint(vars(value), known),
        )
    if isinstance(value, types.MethodType):
        return (id(value.__func__), fingerprint(value.__self__, known))
    if isinstance(value, functools.partial):
        return [fingerprint(v, known) for v in (value.func, value.args, value.keywords)]
    parts = value() if isinstance(value, weakref.ref) else getattr(value, "__dict__", None)
    return (type(value), fingerprint(parts, known))


def random_states() -> list[Any]:
    return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]  # noqa: NPY002


def silenced(make: Any, like: nn.Module, graph: Any, plan: Any, *inputs: Tensor) -> list[Tensor]:
    """Oracle: another model from the same recipe, silenced."""
    model = built(make)
    model.load_state_dict(like.state_dict())
    with torch.no_grad(), masked_norms(silence(model, graph, plan)):
        return tensors_of(model(*inputs))


def lawful(make: Any, seed: int, ratio: float | None = None) -> Any:
    model = built(make)
    x = torch.randn(SHAPE, dtype=torch.float64)
    before, states = fingerprint(model), random_states()
    graph = trace(model, x)
    plan = random_plan(graph, np.random.default_rng(seed), ratio)
    small = apply(model, graph, plan)
    assert fingerprint(model) == before, "the dense model is as it was"
    assert states == random_states()
    common = reached(small).keys() & reached(model).keys()
    assert not [type(reached(model)[key]) for key in common], "nothing that can change is shared"
    assert [type(m).__name__ for m in small.modules()] == [type(m).__name__ for m in model.modules()]
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    with torch.no_grad():
        for batch in (3, 1):  # on a model that did not run before: some keep a state
            small = apply(model, graph, plan)
            y = torch.randn(batch, *SHAPE[1:], dtype=torch.float64)
            for got, want in zip(tensors_of(small(y)), silenced(make, model, graph, plan, y), strict=True):
                torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)
    assert fingerprint(model) == before, "also after the cut model ran"
    return graph


@pytest.mark.parametrize("name", WRAPPED)
def test_law(name: str) -> None:
    make, prunable = WRAPPED[name]
    for seed in range(2):
        graph = lawful(make, seed)
    assert {group.name for group in graph.prunable} == prunable, graph.frozen


@pytest.mark.parametrize("name", MADE)
def test_what_is_made_to_a_size(name: str) -> None:
    make, prunable, inexact = MADE[name]
    for seed in range(3):
        graph = lawful(make, seed)
    assert {group.name for group in graph.prunable} == prunable, graph.frozen
    assert {group.name for group in graph.prunable if group.inexact} == inexact
