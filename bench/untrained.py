"""Full-size networks of all tasks, untrained: traced, cut to 50 % and 35 % of their latency, exported, quantized and measured.

    python bench/untrained.py --work runs/untrained                                      # whatever is not there yet
    python bench/untrained.py --work runs/untrained --only resnet50 --target onnxruntime:fp32 --target openvino:fp32
    python bench/tasks.py RUNS --untrained runs/untrained                                # the page

Latency and structure do not depend on weights; what a network is worth after a cut, it does. Every network of every target is a folder
with ``result.json``; a search that was interrupted goes on where it stopped. Ranges of INT8 come from random inputs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pydeploy.backends.base import Backend, Engine, open_target, reopen
from pydeploy.errors import DeployError
from pydeploy.files import read_json, write_json
from pydeploy.latency.probes.quantized import random_ranges
from pydeploy.models.named import named
from pydeploy.planning.meet_budget import BudgetMet, meet_budget
from pydeploy.profiling.engines import measure_engines
from pydeploy.quant.qdq import quantize
from pydeploy.timing.ratio import ratio

BUDGETS = (0.5, 0.35)
POINTS, ALIGN = 3, 32


@dataclass(frozen=True)
class Net:
    """One network at the size that it is used at."""

    task: str
    model: str
    size: tuple[int, int]
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        torch.manual_seed(0)
        return named(self.model, self.options), (torch.randn(1, 3, *self.size),)


NETS: Mapping[str, Net] = {
    "resnet50": Net("classification", "torchvision:resnet50", (224, 224)),
    "deeplabv3_resnet50": Net("segmentation", "torchvision:deeplabv3_resnet50", (360, 480), {"num_classes": 11}),
    "ssd300_vgg16_bn": Net("detection", "pydeploy:ssd300_vgg16_bn", (300, 300), {"num_classes": 20}),
    "segdecnet": Net("inspection", "pydeploy:segdecnet", (640, 232)),
}
"""A further row of the page is a line here."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of results")
    parser.add_argument("--only", action="append", choices=NETS, help="repeat for several; by default all")
    parser.add_argument(
        "--target", action="append", help="BACKEND:PRECISION; by default onnxruntime:fp32 and openvino:fp32"
    )
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--points", type=int, default=POINTS)
    chosen = parser.parse_args(arguments)
    for name in chosen.only or NETS:
        for target in chosen.target or ("onnxruntime:fp32", "openvino:fp32"):
            here = chosen.work / name / target.replace(":", "-")
            if not (here / "result.json").is_file():
                sys.stderr.write(f"{name} on {target}\n")
                write_json(here / "result.json", result(NETS[name], name, target, here, chosen.threads, chosen.points))


def result(net: Net, name: str, target: str, here: Path, threads: int, points: int) -> dict[str, Any]:
    """All that is known of one network on one target; a budget that was not met has its reason."""
    backend, began = open_target(target, batch=1, threads=threads), time.perf_counter()
    found: dict[str, Any] = {"name": name, "task": net.task, "model": net.model, "size": list(net.size), "target": target,
                             "device": backend.target().device, "threads": backend.target().threads, "budgets": {}}  # fmt: skip
    table = None
    for budget in BUDGETS:
        model, example = net.build()
        try:
            met = meet_budget(model, example, target=backend, budget=budget, out=here / f"{budget:g}", points=points,
                              align=max(ALIGN, backend.align), table=table, say=_say)  # fmt: skip
        except DeployError as error:
            found["budgets"][f"{budget:g}"] = {"reason": str(error)}
            continue
        table = met.table
        found["budgets"][f"{budget:g}"] = _measured(met, backend, here / f"{budget:g}")
        found |= {"parameters": met.graph.learnable, "macs": met.graph.macs()}
    return {**found, "seconds": round(time.perf_counter() - began)}


def _measured(met: BudgetMet, backend: Backend, here: Path) -> dict[str, Any]:
    """The cut engine and its INT8 form beside the dense one, in turns."""
    engines = {"dense": (backend, met.dense), "pruned": (backend, met.engine)}
    engines |= _quantized(met.engine, backend, here)
    times = measure_engines(engines)
    shares = {name: ratio(times[name], times["dense"]) for name in engines}
    last = met.chosen
    return {
        "met": last.met, "round": last.number, "plans": len(met.rounds),
        "error": abs(last.predicted_us / last.measured_us - 1),
        "dense_us": times["dense"].median_us,
        "share": {name: share.value for name, share in shares.items()},
        "disturbed": any(share.disturbed for share in shares.values()),
        "macs": met.graph.macs(met.graph.at(met.plan.widths)) / met.graph.macs(),
        "kept": sum(met.plan.widths.values()) / sum(met.graph.at(met.graph.widths)[name] for name in met.plan.widths),
    }  # fmt: skip


def _quantized(engine: Engine, backend: Backend, here: Path) -> dict[str, tuple[Backend, Engine]]:
    """The INT8 engine of a float one, where the backend has any."""
    if backend.precision == "int8":
        return {}
    int8, onnx, place = (
        reopen(replace(backend.target(), precision="int8")),
        engine.path.with_name("model.onnx"),
        here / "int8",
    )
    place.mkdir(parents=True, exist_ok=True)
    ranges = random_ranges(onnx, int8.int8_style, backend.threads)
    quantize(onnx, ranges, place / "model.onnx", style=int8.int8_style, target=int8.target())
    return {"int8": (int8, int8.build(place / "model.onnx", place / "model.engine"))}


def results(work: Path) -> list[dict[str, Any]]:
    """Whatever was measured so far, in the order of `NETS`."""
    order = list(NETS)
    found = [read_json(path) for path in work.glob("*/*/result.json")]
    return sorted(
        found, key=lambda one: (order.index(one["name"]) if one["name"] in order else len(order), one["target"])
    )


def _say(text: str) -> None:
    sys.stderr.write(f"  {text}\n")


if __name__ == "__main__":
    main()
