"""What every criterion costs on ResNet-50 beside Torch-Pruning's, and all of them on twelve networks of full size.

    python bench/criteria.py --work build/criteria --page docs/figures/criteria.md

Each row is kept in the work folder and not made again, so a stopped run goes on. `--size 64` is a quick form; `--only resnet50`
measures the costs alone. Weights are random with scales of batch norms from 0.5 to 1.5.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import pydeploy as pd
from pydeploy.files import read_json, write_json, write_text
from pydeploy.graph import Graph
from pydeploy.models import build
from pydeploy.prune.criteria import CRITERIA

VISION = ("resnet18", "vgg16_bn", "mobilenet_v2", "mobilenet_v3_large", "densenet121", "inception_v3", "efficientnet_b0",
          "regnet_y_400mf", "vit_b_16", "swin_t")  # fmt: skip
OWN = {"unet": (1, 128), "segdecnet": (1, 128), "ssd300_vgg16_bn": (1, 300)}
"""Networks of pydeploy's zoo, and how many times the size of pictures they need, and at least."""
NAMES = (*VISION, *OWN)
SKIPPED = ("dmcp", "defect_aware")
"""Learned in training; of pictures with masks."""
THEIRS = {"l1": ("GroupMagnitudeImportance", {"p": 1}), "l2": ("GroupMagnitudeImportance", {"p": 2, "group_reduction": "first"}),
          "group_norm": ("GroupMagnitudeImportance", {"p": 2}), "lamp": ("LAMPImportance", {"p": 2}),
          "fpgm": ("FPGMImportance", {"p": 2}), "bn_scale": ("BNScaleImportance", {}),
          "taylor_abs": ("GroupTaylorImportance", {}), "random": ("RandomImportance", {})}  # fmt: skip
REPEATS = 3


def main(given: Sequence[str] | None = None) -> None:
    """Make what is missing in the work folder, print the tables and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--only", nargs="*", choices=["resnet50", *NAMES])
    options = parser.parse_args(given)
    options.work.mkdir(parents=True, exist_ok=True)
    chosen = options.only or ["resnet50", *NAMES]
    found = {name: _rows(name, options) for name in chosen}
    text = _page(found, options)
    print(text)
    if options.page is not None:
        write_text(options.page, text)


def network(name: str, size: int) -> tuple[nn.Module, Tensor]:
    """A network of full size, and its example."""
    torch.manual_seed(0)
    if name in OWN:
        times, least = OWN[name]
        model, pixels = build(name), max(size, least) * times
    else:
        from torchvision import models

        more = {"init_weights": False, "aux_logits": True} if name == "inception_v3" else {}
        pixels = 224 if name in ("vit_b_16",) else max(size, 75) if name == "inception_v3" else size
        model = models.get_model(name, weights=None, **more)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval(), torch.randn(1, 3, pixels, pixels)


def loss(outputs: Any, _target: Any) -> Tensor:
    """Of whatever a network returns."""
    leaves = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return torch.stack([leaf.float().square().mean() for leaf in leaves]).sum()


def _rows(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of every criterion on one network: of the processor, and on the clock."""
    place = options.work / f"{name}_{options.size}.json"
    rows: dict[str, Any] = read_json(place) if place.is_file() else {}
    wanted = [criterion for criterion in CRITERIA.known if criterion not in (*SKIPPED, *rows)]
    if not wanted:
        return rows
    model, example = network(name, options.size)
    graph = pd.trace(model, example)
    batches = [(torch.randn(options.batch, *example.shape[1:]), None) for _ in range(options.batches)]
    for criterion in wanted:
        rows[criterion] = _row(model, graph, criterion, batches, repeats=REPEATS if name == "resnet50" else 1)
        if name == "resnet50" and criterion in THEIRS:
            rows[criterion]["theirs"] = _theirs(model, graph, example, criterion, batches)
        print(name, criterion, rows[criterion], flush=True)
        write_json(place, rows)
    return rows


def _row(model: nn.Module, graph: Graph, criterion: str, batches: Sequence[Any], repeats: int) -> dict[str, Any]:
    """Seconds, and what is wrong: '' where scores are finite and the same twice, and the model is as it was."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    options: dict[str, Any] = {"fallback": "l1"} if criterion != "l1" else {}
    if criterion == "dmcp_lite":
        options["steps"] = 4
    first: list[dict[str, Any]] = []

    def work() -> None:
        first.append(pd.score(model, graph, criterion, data=batches, loss=loss, options=options))

    seconds, clock = _timed(work, max(repeats, 2))
    wrong = []
    if not all(np.isfinite(values).all() for values in first[0].values()):
        wrong.append("not finite")
    if not all(np.array_equal(first[0][key], first[-1][key]) for key in first[0]):
        wrong.append("not the same twice")
    if not all(torch.equal(value, model.state_dict()[key]) for key, value in state.items()):
        wrong.append("changes the model")
    return {"seconds": seconds, "clock": clock, "wrong": ", ".join(wrong), "groups": len(first[0])}


def _theirs(model: nn.Module, graph: Graph, example: Tensor, criterion: str, batches: Sequence[Any]) -> float | None:
    """Seconds of the processor that Torch-Pruning takes for the same groups, gradients included; None where it is not installed."""
    try:
        import torch_pruning as tp
    except ImportError:
        return None
    dependencies = tp.DependencyGraph().build_dependency(model, example_inputs=example)
    roots = [model.get_submodule(group.name) for group in graph.prunable]
    name, given = THEIRS[criterion]
    scorer = getattr(tp.importance, name)(**given)
    groups = [dependencies.get_pruning_group(root, tp.prune_conv_out_channels, idxs=[*range(root.out_channels)])
              for root in roots if isinstance(root, nn.Conv2d)]  # fmt: skip

    def work() -> None:
        if criterion.startswith("taylor"):
            model.zero_grad()
            for inputs, target in batches:
                loss(model(inputs), target).backward()
        for group in groups:
            scorer(group)

    seconds = _timed(work, REPEATS)[0]
    model.zero_grad(set_to_none=True)
    return seconds


def _timed(work: Callable[[], None], repeats: int) -> tuple[float, float]:
    found = []
    for _ in range(repeats):
        before, began = time.process_time(), time.perf_counter()
        work()
        found.append((time.process_time() - before, time.perf_counter() - began))
    return statistics.median(one for one, _ in found), statistics.median(other for _, other in found)


def _page(found: dict[str, dict[str, Any]], options: argparse.Namespace) -> str:
    about = (
        f"Pictures of {options.size} pixels (some networks need more), {options.batches} batches of {options.batch} where a criterion "
        f"looks at data, {torch.get_num_threads()} threads. Seconds of the processor, those on the clock in brackets; another machine's "
        "differ, their proportion hardly. dmcp_lite: 4 steps.\n"
    )
    parts = ["# What criteria cost\n", about]
    if "resnet50" in found:
        parts += [
            "## ResNet-50 beside Torch-Pruning 1.6.1\n",
            "| criterion | pydeploy | Torch-Pruning |",
            "|---|---|---|",
        ]
        for name, row in found["resnet50"].items():
            theirs = row.get("theirs")
            parts.append(
                f"| `{name}` | {row['seconds']:.3f} ({row['clock']:.3f}) | {'' if theirs is None else f'{theirs:.3f}'} |"
            )
        parts.append(
            "\nMedian of three. Torch-Pruning scores a layer with all that hangs on it; groups are found beforehand for both.\n"
        )
    others = [name for name in found if name != "resnet50"]
    if others:
        criteria = [*found[others[0]]]
        law = "Scores are finite, the same twice, and the network is left as it was, unless a cell says otherwise.\n"
        parts += [
            "## Twelve networks\n",
            law,
            f"| network | {' | '.join(criteria)} |",
            f"|---|{'---|' * len(criteria)}",
        ]
        for name in others:
            cells = [
                row["wrong"] or f"{row['seconds']:.2f}"
                for row in (found[name].get(one, {"wrong": "not run"}) for one in criteria)
            ]
            parts.append(f"| {name} | {' | '.join(cells)} |")
    command = "    python bench/criteria.py --work build/criteria --page docs/figures/criteria.md"
    return "\n".join([*parts, "\n<!-- not run: takes half an hour -->\n", command, ""])


if __name__ == "__main__":
    main()
