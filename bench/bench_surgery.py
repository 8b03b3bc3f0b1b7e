"""Cutting to half of the channels: the whole of `apply` beside Torch-Pruning's step, and the gather alone beside torch and memcpy.

The two sides of a comparison run in turns in one process, so that a busy minute slows both; ``extra_info`` holds the medians and
their ratio. With ``--benchmark-disable`` only the small models run, as a check of the answers.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_pruning
from torch import Tensor, nn
from torchvision.models import get_model

from pydeploy import _core
from pydeploy.graph import Graph
from pydeploy.plan import Plan
from pydeploy.prune.structure.trace import trace
from pydeploy.prune.surgery.apply import apply
from pydeploy.prune.surgery.kept_entries import kept_entries
from pydeploy.prune.surgery.tensors import packed

pytestmark = pytest.mark.filterwarnings("ignore")
EXAMPLE = torch.zeros(1, 3, 224, 224)
# Rounds of (apply, step) pairs; Torch-Pruning takes a minute for one step of densenet201.
ROUNDS = {"mobilenet_v2": 15, "resnet50": 9, "vgg16_bn": 9, "convnext_large": 5, "densenet201": 1}
SMALL = ("mobilenet_v2",)


def half(graph: Graph) -> Plan:
    """A random half of every prunable group's channels."""
    rng = np.random.default_rng(0)
    kept = {g.name: tuple(np.sort(rng.permutation(g.width)[: max(1, g.width // 2)]).tolist()) for g in graph.prunable}
    return Plan(kept, graph.fingerprint)


def pruned_by_torch_pruning(model: nn.Module, graph: Graph, plan: Plan) -> Any:
    """Torch-Pruning's pruner, built, whose `step` removes from `model` what `plan` removes."""
    kept = kept_entries(graph, plan)
    scores: dict[nn.Module, Tensor] = {}
    ignored = []
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            rows = kept.get(f"{name}.weight", [None])[0]
            scores[layer] = torch.zeros(layer.weight.shape[0])
            scores[layer][slice(None) if rows is None else torch.from_numpy(rows)] = 1
            ignored += [layer] if rows is None else []
    return torch_pruning.MagnitudePruner(
        model,
        EXAMPLE,
        importance=lambda group: scores[group[0].dep.target.module],
        pruning_ratio=0.5,
        ignored_layers=ignored,
    )


def skip_large(benchmark: Any, name: str) -> None:
    if benchmark.disabled and name not in SMALL:
        pytest.skip("takes long; run with --benchmark-enable")


@pytest.mark.benchmark(group="apply against Torch-Pruning's step, half of the channels")
@pytest.mark.parametrize("name", ROUNDS)
def test_apply(benchmark: Any, name: str) -> None:
    skip_large(benchmark, name)
    model = get_model(name, weights=None).eval()
    graph = trace(model, EXAMPLE)
    plan = half(graph)
    assert plan.kept, "nothing to cut"
    seconds = []
    theirs: list[nn.Module] = []

    def step() -> None:
        """One step of Torch-Pruning on a fresh copy; building its dependency graph is not counted."""
        theirs[:] = [get_model(name, weights=None).eval()]
        theirs[0].load_state_dict(model.state_dict())
        pruner = pruned_by_torch_pruning(theirs[0], graph, plan)
        begin = time.perf_counter()
        pruner.step()
        seconds.append(time.perf_counter() - begin)

    small = benchmark.pedantic(apply, (model, graph, plan), {"threads": 2}, setup=step, rounds=ROUNDS[name])
    if not benchmark.disabled:
        benchmark.extra_info["torch_pruning_step_ms"] = 1e3 * statistics.median(seconds)
        benchmark.extra_info["times_faster"] = statistics.median(seconds) / benchmark.stats.stats.median
    other = theirs[0].state_dict()
    assert small.state_dict().keys() == other.keys()
    assert [k for k, v in small.state_dict().items() if not torch.equal(v, other[k])] == []


def gather_jobs(name: str) -> list[tuple[Any, list[Any]]]:
    model = get_model(name, weights=None).eval()
    graph = trace(model, EXAMPLE)
    kept = kept_entries(graph, half(graph))
    tensors = model.state_dict()
    return [(packed(tensors[name])[0], kept[name]) for name in kept]


def torch_gather(jobs: list[tuple[Any, list[Any]]]) -> list[Any]:
    """One `index_select` per cut dim on two threads, the best way in plain torch that we know."""
    results = []
    for array, entries in jobs:
        tensor = torch.from_numpy(array)
        for dim, picks in enumerate(entries):
            tensor = tensor if picks is None else tensor.index_select(dim, torch.from_numpy(picks))
        results.append(tensor.numpy())
    return results


def median_seconds(functions: list[Callable[[], Any]], rounds: int) -> list[float]:
    """Median time of each function, run in turns."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, own in zip(functions, times, strict=True):
            begin = time.perf_counter()
            result = function()
            own.append(time.perf_counter() - begin)
            del result
    return [statistics.median(own) for own in times]


@pytest.mark.benchmark(group="gather alone against torch and memcpy, two threads")
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet50", "vgg16_bn", "convnext_large"])
def test_gather(benchmark: Any, name: str) -> None:
    skip_large(benchmark, name)
    jobs = gather_jobs(name)
    results = _core.gather_many(jobs, 2)
    for result, expected in zip(results, torch_gather(jobs), strict=True):
        np.testing.assert_array_equal(result, expected)
    total_bytes = sum(result.nbytes for result in results)
    source = torch.ones(total_bytes, dtype=torch.uint8).numpy()  # torch's memory, like the model's
    used = source.copy()
    pool = ThreadPoolExecutor(2)

    def memcpy(target: Any = None) -> Any:
        """As many bytes on two threads into `target` or fresh memory, which is where a new model's tensors lie."""
        target, middle = np.empty_like(source) if target is None else target, total_bytes // 2
        list(pool.map(lambda part: np.copyto(target[part], source[part]), [slice(0, middle), slice(middle, None)]))
        return target

    if not benchmark.disabled:
        torch.set_num_threads(2)
        mine, theirs, copy, warm = median_seconds(
            [lambda: _core.gather_many(jobs, 2), lambda: torch_gather(jobs), memcpy, lambda: memcpy(used)], 15)  # fmt: skip
        benchmark.extra_info |= {
            "bytes": total_bytes,
            "times_faster_than_torch": theirs / mine,
            "share_of_memcpy_into_fresh_memory": copy / mine,
            "share_of_memcpy_into_used_memory": warm / mine,
        }
    benchmark.pedantic(_core.gather_many, (jobs, 2), rounds=5)
    pool.shutdown()


PEAK = """
import sys, torch
from pathlib import Path
sys.path.insert(0, "bench")
from bench_surgery import EXAMPLE, apply, get_model, half, trace
def resident_bytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))
model = get_model(sys.argv[1], weights=None).eval()
graph = trace(model, EXAMPLE)
plan = half(graph)
before = resident_bytes("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
small = apply(model, graph, plan, threads=2)
grown = resident_bytes("VmHWM") - before
dense, cut = (sum(t.nbytes for t in m.state_dict().values()) for m in (model, small))
print((dense + grown) / (dense + cut), grown / cut)
"""


@pytest.mark.benchmark(group="peak memory of apply, in a fresh process")
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to reset the peak")
@pytest.mark.parametrize("name", ["vgg16_bn", "convnext_large"])
def test_peak_memory(benchmark: Any, name: str) -> None:
    skip_large(benchmark, name)

    def measured() -> list[float]:
        done = subprocess.run(
            [sys.executable, "-c", PEAK, name],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent.parent,
        )
        return [float(word) for word in done.stdout.split()]

    peak, over_small = benchmark.pedantic(measured, rounds=1)
    benchmark.extra_info |= {"peak_over_dense_and_small": peak, "growth_over_small": over_small}
    assert peak <= 1.1


@pytest.mark.benchmark(group="2:4 mask of 4.7 million weights")
@pytest.mark.parametrize("side", ["pydeploy", "numpy"])
def test_two_of_four(benchmark: Any, side: str) -> None:
    weight = np.random.default_rng(0).standard_normal((512, 1024, 3, 3)).astype(np.float32)

    def numpy_mask() -> Any:
        runs = np.abs(weight).reshape(512, 256, 4, 9)
        order = np.argsort(-runs, axis=2, kind="stable")
        mask = np.zeros(runs.shape, np.uint8)
        np.put_along_axis(mask, order[:, :, :2], 1, axis=2)
        return mask.reshape(weight.shape)

    ours = benchmark(lambda: _core.keep_largest(weight, 2, 4, 1) if side == "pydeploy" else numpy_mask())
    np.testing.assert_array_equal(ours, numpy_mask())
