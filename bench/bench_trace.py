"""Structure analysis and cut, `trace` + `apply`, beside Torch-Pruning's build + step, model by model of torchvision's classification zoo.

    PYDEPLOY_BENCH_MODELS='*' python -m pytest bench/bench_trace.py --benchmark-enable       # the whole zoo: about half an hour

`PYDEPLOY_BENCH_MODELS` holds name patterns, separated by spaces; without it a few models of different kinds run, and with
``--benchmark-disable`` the smallest ones. The two sides run in turns in one process, on the same weights and input; models that
Torch-Pruning cannot do are left out of the total.
"""

from __future__ import annotations

import copy
import os
import statistics
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pytest
import torch
import torch_pruning
import torchvision
from torch import Tensor, nn

from oracle import masked_norms, random_plan, randomize, silence
from pydeploy.prune.structure.trace import trace
from pydeploy.prune.surgery.apply import apply

pytestmark = pytest.mark.filterwarnings("ignore")
FEW = (
    "alexnet convnext_tiny densenet121 efficientnet_b0 mnasnet0_5 mobilenet_v2 regnet_y_400mf resnet18 resnet50 "
    "squeezenet1_1 vgg11_bn vit_b_16"
)
SMOKE = ("mnasnet0_5", "squeezenet1_1")
PATTERNS = os.environ.get("PYDEPLOY_BENCH_MODELS", FEW).split()
MODELS = [name for name in torchvision.models.list_models(module=torchvision.models)
          if any(fnmatchcase(name, pattern) for pattern in PATTERNS)]  # fmt: skip
ENOUGH_S = 6.0
"""A side that took this long is not asked again."""
SECONDS: dict[str, tuple[float, float]] = {}
"""{model: (pydeploy, Torch-Pruning)} of the models that both could do."""


def built(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, **options)
    size = 299 if name == "inception_v3" else 224
    return randomize(model.eval()), torch.randn(1, 3, size, size)


def ours(model: nn.Module, example: Tensor) -> Any:
    graph = trace(model, example)
    plan = random_plan(graph, np.random.default_rng(0), 0.5)
    return graph, plan, apply(model, graph, plan)


def theirs(model: nn.Module, example: Tensor, outputs: list[nn.Module]) -> None:
    """As its documentation shows it, with the classifier left alone; random importance is the cheapest."""
    importance = torch_pruning.importance.RandomImportance()
    torch_pruning.MetaPruner(model, example, importance, pruning_ratio=0.5, ignored_layers=outputs).step()


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = function()
    return time.perf_counter() - begin, result


def agrees(small: nn.Module, model: nn.Module, graph: Any, plan: Any, example: Tensor) -> bool:
    """Whether the cut model computes what the silenced one does; `model` is silenced."""
    with torch.no_grad():
        found = small(example)
        with masked_norms(silence(model, graph, plan)):
            expected = model(example)
    return float((found - expected).abs().max() / expected.abs().max()) < 1e-3


@pytest.mark.benchmark(group="trace + apply against Torch-Pruning's build + step")
@pytest.mark.parametrize("name", MODELS)
def test_model(benchmark: Any, name: str) -> None:
    if benchmark.disabled and name not in SMOKE:
        pytest.skip("takes long; run with --benchmark-enable")
    model, example = built(name)
    last = [
        layer for layer in model.modules() if getattr(layer, "out_features", getattr(layer, "out_channels", 0)) == 1000
    ]
    mine: list[float] = []
    other: list[float] = []
    refusal = ""

    def turn() -> Any:
        nonlocal refusal
        seconds, result = timed(lambda: ours(model, example))
        mine.append(seconds)
        if not refusal and sum(other) < ENOUGH_S:
            twin, layers = copy.deepcopy((model, last))
            try:
                other.append(timed(lambda: theirs(twin, example, layers))[0])
            except Exception as error:
                refusal = f"{type(error).__name__}: {error}"[:200]
        return result

    rounds = 1 if benchmark.disabled else 3
    graph, plan, small = benchmark.pedantic(turn, rounds=1)
    while len(mine) < rounds and sum(other) < ENOUGH_S:
        turn()
    assert plan.kept
    assert agrees(small, model, graph, plan, example)
    benchmark.extra_info |= {"pydeploy_s": statistics.median(mine), "rounds": len(mine)}
    if refusal:
        benchmark.extra_info["torch_pruning"] = refusal
    else:
        SECONDS[name] = statistics.median(mine), statistics.median(other)
        benchmark.extra_info |= {
            "torch_pruning_s": SECONDS[name][1],
            "times_faster": SECONDS[name][1] / SECONDS[name][0],
        }


@pytest.mark.benchmark(group="trace + apply against Torch-Pruning's build + step")
def test_total(benchmark: Any) -> None:
    """Sums over what ran before in this session and both sides could do."""
    if benchmark.disabled or not SECONDS:
        pytest.skip("sums up what was measured")
    sums = benchmark.pedantic(lambda: [sum(column) for column in zip(*SECONDS.values(), strict=True)], rounds=1)
    slower = {name: pair for name, pair in SECONDS.items() if pair[0] > 2 * pair[1]}
    benchmark.extra_info |= {"models": len(SECONDS), "pydeploy_s": sums[0], "torch_pruning_s": sums[1],
                             "share": sums[0] / sums[1], "slower_than_twice": slower}  # fmt: skip
