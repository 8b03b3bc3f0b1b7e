"""Network Slimming and ISTA on VGG-16-BN: what sparse training, absorption and fine-tuning are each worth.

    python bench/slimming.py --work build/slimming --root FOLDER --page docs/figures/slimming.md

FOLDER holds CIFAR-10's binary version. One network is trained plainly; from there three go on for as many epochs as each other:
plainly (the dense reference), with the slimming subgradient (Liu et al., ICCV 2017), and with ISTA's proximal step (Ye et al., ICLR
2018). Each is cut: a share of all channels by one threshold, or whatever is exactly zero; and each cut is evaluated as it is, with
batch norms measured again, with the removed channels' constants absorbed, and fine-tuned. Every training resumes, every finished
result stays in the work folder.

    python bench/slimming.py --work /tmp/short --root FOLDER --width 16 --samples 8000 --batch 64 --first 5 --epochs 6 --tune 1 \\
        --slimming 0.002 --ista 0.02     # five minutes of one core

What a rate takes off a scale in all is about rate * lr / 2 * steps, for slimming ten times as much (momentum): so fewer steps want
higher rates, which also draw away what the loss needs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pydeploy as pd
from pydeploy.data.cifar import cifar10
from pydeploy.files import read_json, write_json, write_text
from pydeploy.models import build
from pydeploy.prune.sparsity.settings import SparsitySettings
from pydeploy.tasks.augment import Augment
from pydeploy.tasks.classification import Classification
from pydeploy.tasks.evaluate import evaluate, example, predict_with
from pydeploy.train.loop import fit
from pydeploy.train.settings import FitSettings

WAYS = {"plain": None, "slimming": "slimming", "ista": "ista"}
SMALL = 0.01
"""Scales that make a channel all but constant."""
BATCHES = 20
"""Training batches that batch norms and channel means are measured on."""


def main(given: Sequence[str] | None = None) -> None:
    """Make what is missing in the work folder, and the page."""
    options = _options(given)
    images = cifar10(options.root)
    count = options.samples or len(images.train_images)
    images = replace(images, train_images=images.train_images[:count], train_labels=images.train_labels[:count])
    task = Classification(images, Augment(pad=4))
    rows = [row for way in WAYS for row in _way(task, way, options)]
    write_json(options.work / "slimming.json", {"options": {k: str(v) for k, v in vars(options).items()}, "rows": rows})
    print(_table(rows))
    if options.page is not None:
        write_text(options.page, _page(rows, options, task))


def _options(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--root", required=True, help="folder with CIFAR-10's binary version")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--width", type=int, default=24, help="of the first convolution; the published network has 64")
    parser.add_argument("--first", type=int, default=6, help="epochs that all three have in common")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of each of the three after that")
    parser.add_argument("--tune", type=int, default=3, help="epochs of fine-tuning")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--samples", type=int, default=0, help="training pictures; 0 = all")
    parser.add_argument("--share", type=float, default=0.7, help="of all channels that go")
    parser.add_argument("--slimming", type=float, default=1e-3, help="rate of the subgradient")
    parser.add_argument("--ista", type=float, default=5e-3, help="rate of the proximal step")
    parser.add_argument("--cost", default="none", help="what ISTA's rate grows with: none, memory or speed")
    return parser.parse_args(given)


def _way(task: Classification, way: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The network trained one way, and its cuts."""
    folder = options.work / way
    place = folder / "rows.json"
    if place.is_file():
        rows: list[dict[str, Any]] = read_json(place)
        return rows
    rate = {"slimming": options.slimming, "ista": options.ista}.get(way, 0.0)
    cost = options.cost if way == "ista" else "none"
    sparsity = SparsitySettings(kind=WAYS[way], rate=rate, cost=cost) if WAYS[way] else None  # type: ignore[arg-type]
    start = _spread(options.width)
    settings = FitSettings(epochs=options.first, batch_size=options.batch, lr=0.1, weight_decay=5e-4)
    start = _fit(task, start, settings, options.work / "first", "train")
    settings = FitSettings(
        epochs=options.epochs, batch_size=options.batch, lr=0.1, warmup_epochs=0.2, weight_decay=5e-4
    )
    whole = _fit(task, start, settings, folder / "train", f"train {way}", sparsity)
    rows = [_row(task, way, "trained", 0.0, whole)]
    rows += _cuts(task, way, whole, folder, options)
    write_json(place, rows)
    return rows


def _spread(width: int) -> nn.Module:
    """The network with scales from 0.1 to 1, so that a penalty does not bring all of them to zero at once."""
    torch.manual_seed(0)
    model = build("vgg16_bn", width=width)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            order = torch.randperm(module.num_features)
            module.weight.data.copy_(torch.linspace(0.1, 1.0, module.num_features)[order])
    return model


def _cuts(
    task: Classification, way: str, whole: nn.Module, folder: Path, options: argparse.Namespace
) -> list[dict[str, Any]]:
    graph = pd.trace(whole, example(task))
    batches = [
        batch.inputs[0] for batch, _ in zip(task.train_batches(0, options.batch, 1), range(BATCHES), strict=False)
    ]
    criterion = "bn_ista" if way == "ista" else "bn_scale"
    found = pd.select(graph, pd.score(whole, graph, criterion), ratio=options.share, scope="global")
    small = pd.apply(whole, graph, found.plan)
    absorbed = pd.apply(whole, graph, found.plan, means=pd.channel_means(whole, graph, batches))
    settings = FitSettings(epochs=options.tune, batch_size=options.batch, lr=0.02, warmup_epochs=0.2, weight_decay=5e-4)
    tuned = _fit(task, small, settings, folder / "tune", f"fine-tune {way}")
    forms: dict[str, nn.Module] = {"cut": small, "cut, norms measured again": pd.recalibrate(small, batches),
                                   "cut, constants absorbed": absorbed, "cut, fine-tuned": tuned}  # fmt: skip
    rows = [_row(task, way, name, found.removed, form) for name, form in forms.items()]
    for threshold, name in ((0.0, "exact zeros"), (SMALL, f"scales up to {SMALL}")) if way == "ista" else ():
        gone = pd.select(graph, pd.score(whole, graph, "bn_ista"), threshold=threshold)
        exact = pd.apply(whole, graph, gone.plan, means=pd.channel_means(whole, graph, batches))
        rows.append(_row(task, way, f"all {name} cut, constants absorbed", gone.removed, exact))
    return rows


def _fit(task: Classification, model: nn.Module, settings: FitSettings, out: Path, title: str,
         sparsity: SparsitySettings | None = None) -> nn.Module:  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    result = fit(model, task, settings, out=out, sparsity=sparsity, resume=True, progress=_told(title))
    last = result.history[-1]
    print(f"{title}: {result.seconds:.0f} s, loss {last.loss:.3f}, small scales {last.small_scales}", flush=True)
    return result.model


def _told(title: str) -> Callable[[int, int, Any], None]:
    began = time.monotonic()

    def tell(done: int, total: int, told: Any) -> None:
        if done % 100 == 0:
            print(f"{title}: {done}/{total}, loss {told['loss']:.3f}, {time.monotonic() - began:.0f} s", flush=True)

    return tell


def _row(task: Classification, way: str, form: str, removed: float, model: nn.Module) -> dict[str, Any]:
    accuracy = evaluate(task, predict_with(model, task), batch_size=250)["accuracy"]
    print(f"{way}, {form}: {removed:.1%} of channels gone, {accuracy:.2%}", flush=True)
    return {"way": way, "form": form, "removed": removed, "accuracy": accuracy,
            "parameters": sum(p.numel() for p in model.parameters())}  # fmt: skip


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| trained | network | channels gone | accuracy | parameters |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {r['way']} | {r['form']} | {r['removed']:.1%} | {r['accuracy']:.2%} | {r['parameters']:,} |"
                                for r in rows)])  # fmt: skip


def _page(rows: Sequence[dict[str, Any]], options: argparse.Namespace, task: Classification) -> str:
    count = len(task.images.train_images)
    return f"""# Slimming VGG-16-BN

VGG-16-BN with {options.width} channels in its first convolution (published: 64), {options.first} epochs in common and
{options.epochs} more each on {count:,} training pictures of CIFAR-10, one seed, scales of batch norms from 0.1
to 1 at the start; cuts by one threshold over all channels, {options.tune} epochs of fine-tuning. "absorbed": what the
removed channels were on average goes into the layers that read them. Rates: slimming {options.slimming:g}, ista
{options.ista:g} with cost {options.cost}.

{_table(rows)}

<!-- not run: takes most of an hour -->

    python bench/slimming.py --work build/slimming --root FOLDER --page docs/figures/slimming.md
"""


if __name__ == "__main__":
    main()
