"""Verbs on criteria: what there are, and how well they find the channels that can be spared."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pydeploy.cli.arguments import INPUT_HELP, MODEL_HELP, OPTION_HELP, TARGET_HELP, Json, Strict

if TYPE_CHECKING:
    from torch import nn

    from pydeploy.graph import Graph
    from pydeploy.prune.criteria.oracle import Spared
    from pydeploy.run.config import Config
    from pydeploy.tasks.contract import Task


def criteria(json: Json = False) -> None:
    """List the criteria: what each needs, its options, whether its scores compare between groups, and where it is from.

    Example: pydeploy criteria
    """
    from pydeploy.cli.console import show_json, show_table
    from pydeploy.prune.criteria import installed

    found = installed()
    if json:
        keys = ("name", "needs", "options", "scope", "judges", "source")
        show_json([{key: getattr(criterion, key) for key in keys} for criterion in found])
        return
    show_table(
        ("criterion", "needs", "options", "scope", "source"),
        [
            (c.name, ", ".join([*c.takes, *([c.judges] if c.judges else [])]), ", ".join(c.options), c.scope, c.source)
            for c in found
        ],
    )


def mask(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    out: Annotated[Path, typer.Option(help="The model with masked weights set to zero (safetensors).")],
    input: Annotated[list[str] | None, typer.Option("--input", help=INPUT_HELP)] = None,
    option: Annotated[list[str] | None, typer.Option("--option", "-o", help=OPTION_HELP)] = None,
    weights: Annotated[Path | None, typer.Option(help="safetensors file of this model, dense or cut.")] = None,
    strict: Strict = True,
    kind: Annotated[str, typer.Option(help="kernel, magnitude, lamp, pattern or nm (2:4).")] = "kernel",
    ratio: Annotated[float | None, typer.Option(help="Share of kernels or weights to remove [default: 0.5].")] = None,
    scope: Annotated[str | None, typer.Option(help="local (by layer) or global.")] = None,
    target: Annotated[str | None, typer.Option(help=f"Also measure what the zeros save there: {TARGET_HELP}")] = None,
    threads: Annotated[int, typer.Option(min=0, max=1024, help="With --target: threads; 0 = all cores.")] = 0,
    json: Json = False,
) -> None:
    """Zero kernels or weights inside layers, and cut the channels that become empty; most runtimes execute all other zeros.

    Example: pydeploy mask torchvision:resnet18 --input 1x3x224x224 --kind nm --out masked.safetensors
    """
    from dataclasses import asdict

    from pydeploy.cli import arguments
    from pydeploy.cli.console import tell
    from pydeploy.files import check_writable
    from pydeploy.prune.sparsity.empty_channels import without_empty
    from pydeploy.prune.sparsity.masking import MaskRules, masks_for
    from pydeploy.prune.structure.trace import trace
    from pydeploy.prune.surgery.masks import count, masked, unmasked
    from pydeploy.prune.surgery.save import load_plan, save

    check_writable(out)
    rules = MaskRules(kind=kind, ratio=ratio, scope=scope)  # type: ignore[arg-type]
    net, example = arguments.dense_or_cut(model, option or [], weights, strict=strict), arguments.example(input or [])
    graph = trace(net, example)
    found = masks_for(net, graph, rules)
    small, lost = unmasked(masked(net, found.masks)), 0
    before = load_plan(weights) if weights is not None else None
    cut = without_empty(small, graph, example)
    if cut is not None:
        small, plan = cut
        before = plan.after(before)
        lost = sum(graph.widths[name] - width for name, width in plan.widths.items())
    cost = count(small, trace(small, example))
    save(out, small, before)
    told = f"{lost} channels that were empty are cut\n" if cut is not None else ""
    told += "".join(f"{name} stays whole: {why}\n" for name, why in found.skipped.items())
    told += (f"{out}: {cost.dense_macs:,} MACs in a dense runtime, {cost.effective_macs:,} effective (weights that are not "
             f"zero); {cost.params:,} parameters, {cost.nonzero_params:,} not zero\n")  # fmt: skip
    beside = None if target is None else _beside_full(small, example, target, threads)
    tell(json, {"model": str(out), **asdict(cost), "cut": lost, "skipped": dict(found.skipped), "latency": beside},
         told if beside is None else f"{told}{beside}\n")  # fmt: skip


def _beside_full(small: nn.Module, example: Any, target: str, threads: int) -> str:
    """What the masked network takes, measured in turns with the same network without zeros."""
    from tempfile import TemporaryDirectory

    import torch

    from pydeploy.backends.base import open_target
    from pydeploy.export import export
    from pydeploy.planning.engine_files import samples_in
    from pydeploy.profiling.engines import measure_engines
    from pydeploy.prune.surgery.copying import copied
    from pydeploy.timing.ratio import ratio

    backend = open_target(target, batch=samples_in(example), threads=threads)
    full = copied(small, {})
    with torch.no_grad():
        for weight in full.parameters():
            weight[weight == 0] = float(weight.std(correction=0)) or 1e-3
    with TemporaryDirectory(prefix="pydeploy-") as folder:
        engines = {}
        for name, network in (("full", full), ("masked", small)):
            onnx = export(network, example, Path(folder) / f"{name}.onnx", batch=backend.batch)
            engines[name] = (backend, backend.build(onnx, Path(folder) / f"{name}.engine"))
        times = measure_engines(engines)
    found = ratio(times["masked"], times["full"])
    taken = f"{times['masked'].median_us:.0f} us, {found} times the same network without zeros"
    if not backend.target().measured:
        return f"{taken}: analytic, not measured"
    if found.below(1.0):
        return f"{taken}: {target} makes use of the zeros"
    return f"{taken}: the latency is that of the dense network, {target} executes the zeros"


def oracle(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    config: Annotated[Path, typer.Option(help="Config whose task gives batches and loss.")],
    input: Annotated[list[str] | None, typer.Option("--input", help=INPUT_HELP)] = None,
    option: Annotated[list[str] | None, typer.Option("--option", "-o", help=OPTION_HELP)] = None,
    criterion: Annotated[
        list[str] | None, typer.Option(help="Criteria to judge, joined by commas [default: l1].")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Trained dense model (safetensors).")] = None,
    strict: Strict = True,
    group: Annotated[list[str] | None, typer.Option(help="Groups to try (pattern with *); repeat.")] = None,
    channels: Annotated[int, typer.Option(min=2, max=1_000_000, help="Channels to try of each group.")] = 32,
    batches: Annotated[int, typer.Option(min=1, max=1_000_000, help="Training batches, as large as 'prune' says.")] = 2,
    share: Annotated[
        float, typer.Option(help="K as a share of the channels tried, and the share that a cut removes.")
    ] = 0.2,
    out: Annotated[Path | None, typer.Option(help="Write all numbers here as JSON.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override, e.g. prune.batch_size=64; repeat.")] = None,
    json: Json = False,
) -> None:
    """Judge criteria: how many of the K channels that each finds least important the loss finds so, too.

    Precision is that share, lift how many times it is better than chance, spearman the correlation of ranks, all means over
    groups. mse is that of the outputs after a cut of the same share of every group, batch norms measured again, nothing
    fine-tuned.

    Example: pydeploy oracle pydeploy:resnet8 --input 1x1x28x28 -o in_channels=1 --config configs/smoke.yaml --criterion l1,taylor
    """
    from pydeploy.cli import arguments
    from pydeploy.cli.console import show_json, show_table
    from pydeploy.errors import ConfigError, nearest
    from pydeploy.files import check_writable, write_json
    from pydeploy.guests.patterns import matches
    from pydeploy.prune.criteria import CRITERIA
    from pydeploy.prune.criteria.oracle import oracle as without
    from pydeploy.prune.structure.trace import trace
    from pydeploy.run.config import load
    from pydeploy.run.job import open_task
    from pydeploy.run.stages.scoring import first_batches, loss_of

    names = [name for text in criterion or ["l1"] for name in text.split(",")]
    for name in names:
        CRITERIA.find(name)
    if not 0 < share < 1:
        raise ConfigError(f"--share is {share}, expected more than 0 and less than 1")
    if out is not None:
        check_writable(out)
    net = arguments.dense_or_cut(model, option or [], weights, strict=strict)
    graph = trace(net, arguments.example(input or []))
    settings = load(config, set_ or [])
    task = open_task(settings)
    patterns = group or ["*"]
    for pattern in patterns:
        if not any(matches(g.name, pattern) for g in graph.prunable):
            raise ConfigError(f"no group matches '{pattern}'{nearest(pattern, [g.name for g in graph.prunable])}")
    chosen = settings.prune.model_copy(update={"batches": batches})
    data = [(batch.inputs, batch) for batch in first_batches(task, chosen, settings.seed)]
    truth = without(net, graph, data=data, loss=loss_of(task), channels=channels, seed=settings.seed,
                    groups=lambda name: any(matches(name, pattern) for pattern in patterns))  # fmt: skip
    rows = [_row(settings, task, net, graph, name, data, truth, share) for name in names]
    loss = {name: {"channels": s.channels.tolist(), "increase": s.increase.tolist()} for name, s in truth.items()}
    told = {"schema": 1, "criteria": rows, "loss": loss}
    if out is not None:
        write_json(out, told)
    if json:
        show_json(told)
        return
    show_table(tuple(rows[0]), [tuple(row.values()) for row in rows])
    if out is not None:
        sys.stdout.write(f"{out}\n")


def _row(settings: Config, task: Task, net: nn.Module, graph: Graph, name: str, data: Sequence[Any], truth: Mapping[str, Spared],
         share: float) -> dict[str, Any]:  # fmt: skip
    """What is told of one criterion."""
    import time

    from pydeploy.planning.select import select
    from pydeploy.prune.criteria.oracle import agreement, reconstruction
    from pydeploy.prune.criteria.score import score
    from pydeploy.prune.surgery.apply import apply
    from pydeploy.prune.surgery.recalibrate import recalibrate
    from pydeploy.run.stages.scoring import loss_of

    options = settings.prune.options if name == settings.prune.criterion else {}
    began = time.perf_counter()
    scores = score(net, graph, name, data=data, loss=loss_of(task), seed=settings.seed, options=options)
    seconds = time.perf_counter() - began
    found = list(agreement(scores, truth, share).values())
    inputs = [inputs for inputs, _ in data]
    small = recalibrate(apply(net, graph, select(graph, scores, ratio=share).plan), inputs)
    mse, relative = reconstruction(net, small, inputs)
    mean = {
        key: sum(getattr(a, key) for a in found) / max(len(found), 1)
        for key in ("precision", "chance", "lift", "spearman")
    }
    return {"criterion": name, **{key: round(value, 3) for key, value in mean.items()}, "mse": float(f"{mse:.4g}"),
            "relative_mse": float(f"{relative:.4g}"), "seconds": round(seconds, 2)}  # fmt: skip
