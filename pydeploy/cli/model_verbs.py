"""Verbs on PyTorch models: trace, prune, export."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from pydeploy.cli.arguments import CRITERION_HELP, INPUT_HELP, MODEL_HELP, OPTION_HELP, TARGET_HELP, Json, Strict

if TYPE_CHECKING:
    from torch import nn

    from pydeploy.graph import Graph
    from pydeploy.plan import Plan

Model = Annotated[str, typer.Argument(help=MODEL_HELP)]
Inputs = Annotated[Optional[list[str]], typer.Option("--input", help=INPUT_HELP)]
Options = Annotated[Optional[list[str]], typer.Option("--option", "-o", help=OPTION_HELP)]
Weights = Annotated[
    Optional[Path], typer.Option(help="File of this model's tensors: safetensors, dense or cut, .pth or .pt.")
]


def trace(
    model: Model,
    input: Inputs = None,
    option: Options = None,
    weights: Weights = None,
    strict: Strict = True,
    exclude: Annotated[
        Optional[list[str]], typer.Option(help="Layers to leave whole (pattern with *); repeat.")
    ] = None,
    out: Annotated[Optional[Path], typer.Option(help="Write the graph here as JSON.")] = None,
    json: Json = False,
) -> None:
    """Show which channels can be pruned, which cannot and why, parameters and MACs.

    Example: pydeploy trace torchvision:resnet18 --input 1x3x224x224
    """
    from pydeploy.cli import arguments
    from pydeploy.cli.console import show_json, show_table
    from pydeploy.prune.structure.trace import trace as find

    net = arguments.dense_or_cut(model, option or [], weights, strict=strict)
    graph = find(net, arguments.example(input or []), exclude=tuple(exclude or ()))
    if out is not None:
        graph.save(out)
    if json:
        show_json(graph.to_json())
        return
    show_table(
        ("group", "width", "places", "frozen because"),
        [(g.name, g.width, len(g.slices), g.frozen) for g in graph.groups],
    )
    if graph.idle:
        sys.stdout.write(
            f"\nnot run by any engine (nobody reads the result, or it is constant): {', '.join(graph.idle)}\n"
        )
    channels = sum(g.width for g in graph.prunable)
    sys.stdout.write(f"\n{len(graph.prunable)} of {len(graph.groups)} groups prunable ({channels} channels), "
                     f"{graph.learnable:,} parameters, {graph.macs():,} MACs (multiply-accumulates, no bias, no norm)\n")  # fmt: skip


def prune(
    model: Model,
    out: Annotated[Path, typer.Option(help="The cut model (safetensors, the plan in its metadata).")],
    input: Inputs = None,
    option: Options = None,
    weights: Weights = None,
    strict: Strict = True,
    criterion: Annotated[str, typer.Option(help=CRITERION_HELP)] = "l1",
    criterion_option: Annotated[
        Optional[list[str]], typer.Option(help="Option of the criterion as key=value; repeat for several.")
    ] = None,
    config: Annotated[
        Optional[Path], typer.Option(help="Config whose task gives batches and loss (criteria of gradients need them).")
    ] = None,
    budget: Annotated[
        Optional[float],
        typer.Option(
            help="Share of the dense engine's latency (0.6), or microseconds; with --target, engines are measured."
        ),
    ] = None,
    target: Annotated[Optional[str], typer.Option(help=f"With --budget: {TARGET_HELP}")] = None,
    threads: Annotated[int, typer.Option(min=0, max=1024, help="With --budget: threads; 0 = all cores.")] = 0,
    budget_us: Annotated[
        Optional[float],
        typer.Option(help="Budget in microseconds by the table's word, nothing is measured; needs --table."),
    ] = None,
    table: Annotated[
        Optional[Path], typer.Option(help="Latency table of the target ('pydeploy table measure').")
    ] = None,
    ratio: Annotated[Optional[float], typer.Option(help="Share of channels to remove, without a table.")] = None,
    threshold: Annotated[Optional[float], typer.Option(help="Channels with a higher score stay.")] = None,
    energy: Annotated[Optional[float], typer.Option(help="Share of the scores' sum that stays.")] = None,
    macs: Annotated[Optional[float], typer.Option(help="Share of the multiply-accumulates that may stay.")] = None,
    params: Annotated[Optional[float], typer.Option(help="Share of the parameters that may stay.")] = None,
    scope: Annotated[
        Optional[str], typer.Option(help="local (by group) or global [default: as the criterion's scores compare].")
    ] = None,
    align: Annotated[int, typer.Option(min=1, max=1_000_000, help="Width multiple, where there is no table.")] = 8,
    rounding: Annotated[str, typer.Option(help="To which multiple: nearest, down, up, or power2.")] = "nearest",
    regular: Annotated[bool, typer.Option("--regular", help="The same as --align 8 --rounding up.")] = False,
    min_share: Annotated[float, typer.Option(help="Share of its channels that every group keeps.")] = 0.0,
    min_width: Annotated[int, typer.Option(min=1, max=1_000_000, help="Fewest channels a group may keep.")] = 1,
    layers: Annotated[str, typer.Option(help="normal leaves groups with shortcuts whole.")] = "shortcut",
    apart: Annotated[
        Optional[list[str]], typer.Option(help="Groups (pattern with *) that compare among themselves; repeat.")
    ] = None,
    plan: Annotated[Optional[Path], typer.Option(help="Also write the plan here as JSON.")] = None,
    evaluate: Annotated[
        bool,
        typer.Option("--eval", help="Measure batch norms again and judge the cut network by the task of --config."),
    ] = False,
    json: Json = False,
) -> None:
    """Cut a model until its engine is measured to meet a budget; or by a table's word, a ratio, a threshold, MACs or parameters.

    Example: pydeploy prune torchvision:resnet18 --input 1x3x224x224 --budget 0.6 --target onnxruntime:fp32 --out small.safetensors
    """
    from pydeploy.cli import arguments
    from pydeploy.cli.console import tell
    from pydeploy.errors import ConfigError
    from pydeploy.files import check_writable
    from pydeploy.prune.criteria import CRITERIA
    from pydeploy.prune.structure.trace import trace as find
    from pydeploy.prune.surgery.apply import apply
    from pydeploy.prune.surgery.save import load_plan, save

    for path in (out, plan):
        if path is not None:
            check_writable(path)
    if evaluate and config is None:
        raise ConfigError("--eval needs --config: its task has the data and the metric")
    net, example = arguments.dense_or_cut(model, option or [], weights, strict=strict), arguments.example(input or [])
    graph = find(net, example)
    given = arguments.options_of(criterion_option or [], "criterion")
    scores = _scores(net, graph, criterion, given, config)
    asked = {"ratio": ratio, "threshold": threshold, "energy": energy, "macs": macs, "params": params}
    amounts = {name: amount for name, amount in asked.items() if amount is not None}
    how = {"scope": CRITERIA[criterion].scope if scope is None else scope, "align": 8 if regular else align, "apart": apart or [],
           "rounding": "up" if regular else rounding, "min_share": min_share, "layers": layers}  # fmt: skip
    if budget is not None or target is not None:
        _require_alone(budget, target, budget_us, amounts)
        chosen = _measured_plan(net, example, scores, budget, target, table, threads, min_width, out)
    else:
        chosen = _plan(graph, scores, budget_us, table, amounts, how, min_width)
    small, judged = apply(net, graph, chosen.plan), ""
    metrics: dict[str, Any] = {}
    if evaluate:
        small, judged, metrics = _judged(net, small, config)
    save(out, small, chosen.plan.after(load_plan(weights)) if weights is not None else chosen.plan)
    if plan is not None:
        chosen.plan.save(plan)
    after = find(small, example)
    counted = {"params": [graph.learnable, after.learnable], "macs": [graph.macs(), after.macs()]}
    sizes = f"{out}: {graph.learnable:,} -> {after.learnable:,} parameters, {graph.macs():,} -> {after.macs():,} MACs"
    tell(json, {"model": str(out), **counted, "widths": dict(chosen.plan.widths), **chosen.facts, **metrics},
         f"{chosen.before}{sizes}{chosen.after}{judged}\n")  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A plan, and what is told of it: facts for JSON, text before and after the sizes."""

    plan: Plan
    facts: Mapping[str, Any]
    before: str = ""
    after: str = ""


def _judged(net: nn.Module, small: nn.Module, config: Path | None) -> tuple[nn.Module, str, dict[str, Any]]:
    """The cut network with its batch norms measured again, and what the config's task says of both networks."""
    from pydeploy.prune.surgery.recalibrate import has_statistics, recalibrate
    from pydeploy.run.config import load
    from pydeploy.run.job import open_task
    from pydeploy.run.stages.scoring import first_batches
    from pydeploy.tasks.evaluate import evaluate, predict_with

    assert config is not None
    settings = load(config)
    task, size = open_task(settings), settings.prune.batch_size
    again = ""
    if has_statistics(small):
        small = recalibrate(small, (batch.inputs for batch in first_batches(task, settings.prune, settings.seed)))
        again = f"batch norms measured again on {settings.prune.batches} batches, "
    metric = task.metric
    dense, cut = (
        evaluate(task, predict_with(model, task), batch_size=min(size, task.size("test")))[metric.name]
        for model in (net, small)
    )
    told = f"\n{metric.name} {metric.text(cut)}, dense {metric.text(dense)} ({again}not fine-tuned)"
    return small, told, {"metric": metric.name, "dense": dense, "cut": cut}


def _require_alone(
    budget: float | None, target: str | None, budget_us: float | None, amounts: Mapping[str, float]
) -> None:
    from pydeploy.errors import ConfigError

    if budget is None or target is None:
        raise ConfigError(f"--budget and --target go together: --{'budget' if budget is None else 'target'} is missing")
    if budget_us is not None or amounts:
        other = "budget-us" if budget_us is not None else next(iter(amounts))
        raise ConfigError(f"give one of --budget with --target, and --{other}")


def _measured_plan(
    net: nn.Module, example: Any, scores: Any, budget: float | None, target: str | None, table: Path | None, threads: int,
    min_width: int, out: Path,
) -> _Chosen:  # fmt: skip
    """The plan of the closed loop, and what was measured; engines, rounds and the table stay beside `out`."""
    from pydeploy.cli.console import Terminal
    from pydeploy.planning.meet_budget import meet_budget

    assert budget is not None
    assert target is not None
    here = out.with_name(f"{out.stem}.search")
    found = meet_budget(net, example, target=target, budget=budget, scores=scores, table=table, out=here, threads=threads,
                        min_width=min_width, say=Terminal().say)  # fmt: skip
    one = found.chosen
    facts = {"measured_us": one.measured_us, "limit_us": one.limit_us, "engine": str(found.engine.path),
             "table": str(found.table.path)}  # fmt: skip
    return _Chosen(found.plan, facts, after=(
        f", measured {one.measured_us:.0f} us ({one.tried.measured:.1%} of the budget of {one.limit_us:.0f} us) on "
        f"{found.engine.target}\n{found.engine.path}: the engine before fine-tuning; {found.table.path}: the latency table"
    ))  # fmt: skip


def _scores(net: nn.Module, graph: Graph, criterion: str, given: Mapping[str, Any], config: Path | None) -> Any:
    from pydeploy.errors import ConfigError
    from pydeploy.prune.criteria.score import chosen, score

    first, second, _ = chosen(criterion, given)
    if config is None:
        for one in (first, second):
            if one is not None and one.batches:
                raise ConfigError(
                    f"criterion '{one.name}' needs {one.batches}: pass --config with the task, or use one of weights (l1)"
                )
        return score(net, graph, criterion, options=given)
    from pydeploy.run.config import load
    from pydeploy.run.job import open_task
    from pydeploy.run.stages import scoring

    settings = load(config)
    return scoring.scores_of(settings, open_task(settings), net, graph, criterion, given)


def _plan(graph: Graph, scores: Any, budget_us: float | None, table: Path | None, amounts: Mapping[str, Any],
          how: Mapping[str, Any], min_width: int) -> _Chosen:  # fmt: skip
    from pydeploy.errors import ConfigError
    from pydeploy.latency.table.table import Table
    from pydeploy.planning.select import select
    from pydeploy.planning.solve import solve

    if (budget_us is None) == (not amounts):
        raise ConfigError(
            "give --budget with --target, --budget-us with --table, or one of --ratio, --threshold, --energy, --macs and --params"
        )
    if amounts:
        if table is not None:
            raise ConfigError(f"--table goes with --budget-us; --{next(iter(amounts))} needs none")
        found = select(graph, scores, **amounts, **how, min_width=min_width)
        told = (f"removed {found.removed:.1%} of the channels; {found.macs:.1%} of the MACs and {found.params:.1%} of the "
                "parameters stay\n")  # fmt: skip
        if found.at_minimum:
            told += f"kept more than asked for, the least they may: {', '.join(found.at_minimum)}\n"
        facts = {"removed": found.removed, "at_minimum": list(found.at_minimum)}
        return _Chosen(found.plan, facts, before=told)
    if table is None:
        raise ConfigError("--budget-us needs --table: make one with 'pydeploy table measure'")
    assert budget_us is not None
    plan = solve(graph, scores, Table.open(table), budget_us=budget_us, min_width=min_width)
    told = f", predicted {plan.latency_us:.0f} us, at most {plan.gap:.3%} below the best score possible"
    return _Chosen(plan, {"predicted_us": plan.latency_us, "gap": plan.gap}, after=told)


def export(
    model: Model,
    out: Annotated[Path, typer.Option(help="ONNX file.")],
    input: Inputs = None,
    option: Options = None,
    weights: Weights = None,
    strict: Strict = True,
    batch: Annotated[int, typer.Option(min=1, max=1_000_000, help="Batch size of the file.")] = 1,
    input_name: Annotated[
        Optional[list[str]],
        typer.Option(help="Name of an input in the file; repeat for several [default: input, or the forward's own]."),
    ] = None,
    json: Json = False,
) -> None:
    """Write a model as ONNX with layers named like the model's, checked against PyTorch on ONNX Runtime.

    Example: pydeploy export torchvision:resnet18 --input 1x3x224x224 --weights small.safetensors --out small.onnx
    """
    from pydeploy.cli import arguments
    from pydeploy.cli.console import Terminal, tell
    from pydeploy.export import export as write
    from pydeploy.files import check_writable

    check_writable(out)
    net, example = arguments.dense_or_cut(model, option or [], weights, strict=strict), arguments.example(input or [])
    path = write(net, example, out, batch=batch, input_names=input_name or None, say=Terminal().say)
    size = path.stat().st_size
    tell(json, {"onnx": str(path), "bytes": size}, f"{path}: {size:,} bytes\n")
