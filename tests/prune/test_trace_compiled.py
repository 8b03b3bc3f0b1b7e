"""Models that `torch.compile` or data-parallel training has wrapped."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oracle import random_plan, silence
from patterns import Net, conv
from pydeploy.errors import TraceError
from pydeploy.prune.structure.trace import trace
from pydeploy.prune.surgery.apply import apply

SHAPE = (2, 3, 8, 8)
PLAIN = "eager"
"""Compiled without a compiler: the graph runs as it is."""


def body() -> nn.Module:
    return nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 6), nn.Conv2d(6, 2, 1))


def _compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend=PLAIN)  # type: ignore[no-any-return]


def _in_place(model: nn.Module) -> nn.Module:
    model.compile(backend=PLAIN)
    return model


def _inside(model: nn.Module) -> nn.Module:
    return Net(lambda m, x: m.d(torch.relu(m.inner(x))), inner=_compiled(model), d=conv(2, 2))


def _function(model: nn.Module) -> nn.Module:
    step = torch.compile(lambda x: torch.relu(x) + 1, backend=PLAIN)
    return Net(lambda m, x: m.d(m.step(m.inner(x))), inner=model, step=step, d=conv(2, 2))


class Decorated(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.d = inner, conv(2, 2)

    @torch.compile(backend=PLAIN)
    def forward(self, x: Tensor) -> Tensor:
        return self.d(torch.relu(self.inner(x)))


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "model": _compiled,
    "in place": _in_place,
    "inside": _inside,
    "function": _function,
    "method": Decorated,
    "data parallel": nn.DataParallel,
}


def shared(one: nn.Module, two: nn.Module) -> list[Any]:
    """Modules and tensors that both reach."""

    def reached(root: Any) -> dict[int, Any]:
        found: dict[int, Any] = {}
        pending = [root]
        while pending:
            value = pending.pop()
            if id(value) in found or isinstance(value, (type, type(gc))):
                continue
            found[id(value)] = value
            if callable(value) and hasattr(value, "__globals__"):
                pending += [value.__closure__, value.__defaults__, vars(value)]
            else:
                pending += gc.get_referents(value)
        return {key: v for key, v in found.items() if isinstance(v, (nn.Module, Tensor))}

    first = reached(one)
    return [value for key, value in reached(two).items() if key in first]


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("ran", [False, True])
def test_wrapped_models_are_cut_like_plain_ones(name: str, ran: bool) -> None:
    def built() -> nn.Module:
        torch.manual_seed(0)
        return WRAPPERS[name](body()).double().eval()

    x = torch.randn(SHAPE, dtype=torch.float64)
    torch._dynamo.reset()
    with torch.no_grad():
        model, dense = built(), built()
        if ran:
            model(x)
        graph = trace(model, x)
        assert [g.width for g in graph.prunable][:2] == [8, 6]
        plan = random_plan(graph, np.random.default_rng(0), 0.5)
        before = model(x)
        small = apply(model, graph, plan)
        assert not shared(model, small)
        silence(dense, graph, plan)
        torch.testing.assert_close(small(x), dense(x), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(model(x), before, rtol=0, atol=0)
    assert type(small).__name__ == type(model).__name__


def test_distributed_training_is_refused(tmp_path: Any) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(body())
        with pytest.raises(TraceError, match=r"'the model' is a DistributedDataParallel.*trace and cut its 'module'"):
            trace(model, torch.zeros(SHAPE))
        assert trace(model.module, torch.zeros(SHAPE)).prunable
    finally:
        dist.destroy_process_group()


def test_tracing_compiles_nothing() -> None:
    torch._dynamo.reset()
    calls: list[int] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        calls.append(1)
        return graph.forward

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trace(torch.compile(body(), backend=backend), torch.zeros(SHAPE))
    assert not calls
