"""``pydeploy table measure`` and ``verify``: the verbs that run engines."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from pydeploy.cli.arguments import GPUS_HELP, INPUT_HELP, MODEL_HELP, OPTION_HELP, TARGET_HELP, Json

if TYPE_CHECKING:
    from pydeploy.backends.base import Backend
    from pydeploy.cli.console import Terminal
    from pydeploy.graph import Graph
    from pydeploy.latency.board import ProbeFolder
    from pydeploy.latency.check.verify import Verification
    from pydeploy.latency.probes.design import Grid
    from pydeploy.latency.table.table import Table

app = typer.Typer(
    help="Latency tables: measure, verify, show, plot, export, import, merge.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Database = Annotated[Path, typer.Option("--db", help="Table file (SQLite).")]


@app.command()
def measure(
    target: Annotated[str, typer.Option(help=TARGET_HELP)],
    db: Database,
    model: Annotated[
        Optional[str], typer.Argument(help=f"{MODEL_HELP[:-1]}; or MODEL.onnx together with --graph; or use --onnx.")
    ] = None,
    onnx: Annotated[
        Optional[Path], typer.Option(help="Folder that 'pydeploy table probes' wrote; needs no PyTorch.")
    ] = None,
    input: Annotated[Optional[list[str]], typer.Option("--input", help=INPUT_HELP)] = None,
    option: Annotated[Optional[list[str]], typer.Option("--option", "-o", help=OPTION_HELP)] = None,
    graph: Annotated[Optional[Path], typer.Option(help="Graph JSON of an ONNX model ('pydeploy trace --out').")] = None,
    points: Annotated[int, typer.Option(min=2, max=31, help="Most widths measured for one group.")] = 7,
    align: Annotated[
        Optional[int],
        typer.Option(min=1, max=1_000_000, help="Widths are multiples of this; else what suits the target."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=1_000_000, help="Batch size.")] = 1,
    limit: Annotated[Optional[int], typer.Option(min=1, max=1_000_000, help="Most networks to build.")] = None,
    threads: Annotated[int, typer.Option(min=0, max=1024, help="Threads; 0 = all cores this process may use.")] = 0,
    rounds: Annotated[int, typer.Option(min=1, max=1_000_000, help="Interleaved rounds, at least.")] = 6,
    runs: Annotated[int, typer.Option(min=1, max=1_000_000, help="Runs in a round.")] = 5,
    refine: Annotated[
        int,
        typer.Option(
            min=0,
            max=1000,
            help="Further networks with widths around the edges of the stairs, one of them off the grid.",
        ),
    ] = 0,
    json: Json = False,
) -> None:
    """Measure layers inside networks at planned widths; what the table holds already is kept.

    Example: pydeploy table measure torchvision:resnet18 --input 1x3x224x224 --target onnxruntime:fp32 --db resnet18.sqlite
    """
    from pydeploy.cli.arguments import backend_named
    from pydeploy.cli.console import Terminal, tell
    from pydeploy.latency.probes.design import grid
    from pydeploy.latency.probes.measure import measure as fill
    from pydeploy.latency.probes.measure import minutes
    from pydeploy.latency.table.table import Table

    terminal, folder = Terminal(), _folder(onnx, model)
    backend = backend_named(target, batch=batch if folder is None else folder.batch, threads=threads)
    with _dense(model or "", input or [], option or [], graph, batch, folder) as (structure, file):
        table = Table.open(db, backend.target())
        if structure.idle:
            terminal.say(f"not run by any engine, so not measured: {', '.join(structure.idle)}")
        widths = grid(structure, points, align or backend.align) if folder is None else folder.widths
        table.set_note("input", " ".join("x".join(map(str, shape)) for shape in structure.inputs))
        with terminal.bar("measure the latency table") as tick:
            done = fill(structure, file, backend, table, widths=widths, rounds=rounds, runs=runs, limit=limit,
                        engines=None if folder is None else folder.engines, progress=tick,
                        announce=lambda s: terminal.say(minutes(s)))  # fmt: skip
        finer = (
            _refine(structure, file, backend, table, widths, align or backend.align, refine, terminal) if refine else ""
        )
    counts = {"measured": done.measured, "kept": done.skipped, "disturbed": done.disturbed, "seconds": done.seconds}
    tell(json, {"table": str(db), **counts, "target": backend.target().to_json()},
         f"{finer}{db}: {done.measured} networks measured, {done.skipped} kept, {done.disturbed} disturbed, "
         f"{done.seconds:.0f} s on {backend.target()}\n")  # fmt: skip


def _refine(
    graph: Graph, onnx: Path, backend: Backend, table: Table, widths: Grid, align: int, count: int, terminal: Terminal
) -> str:
    """Measure `count` networks at the edges that the coarse grid showed; says how far the off-grid one was predicted."""
    from pydeploy.errors import MissingTiming
    from pydeploy.latency.probes.measure import measure as fill
    from pydeploy.latency.probes.refine import further_plans, off_grid
    from pydeploy.latency.probes.refine import refine as finer

    known = [network.widths for network in table.networks(graph)]
    between = off_grid(widths, align)
    try:
        predicted = table.predict_us(graph, between)
    except MissingTiming:
        predicted = float("nan")
    plans = [between, *further_plans(graph, finer(graph, table, widths, align), known, count - 1)]
    with terminal.bar("refine around edges") as tick:
        done = fill(graph, onnx, backend, table, widths=widths, plans=plans, progress=tick)
    measured = next(n for n in reversed(table.networks(graph)) if n.widths == between).whole.median_us
    return (
        f"{len(plans)} networks around edges in {done.seconds:.0f} s; the one off the grid: "
        f"predicted {predicted:.0f} us, measured {measured:.0f} us\n"
    )


def _folder(onnx: Path | None, model: str | None) -> ProbeFolder | None:
    from pydeploy.errors import ConfigError
    from pydeploy.latency.board import ProbeFolder

    if (onnx is None) == (model is None):
        raise ConfigError("give either a MODEL or --onnx with a folder that 'pydeploy table probes' wrote")
    return None if onnx is None else ProbeFolder.load(onnx)


@contextmanager
def _dense(
    model: str, inputs: list[str], options: list[str], graph: Path | None, batch: int, folder: ProbeFolder | None = None
) -> Iterator[tuple[Graph, Path]]:
    """Graph and ONNX file of the dense model; made from the model, or given as files (then torch is not needed)."""
    from pydeploy.errors import ConfigError, DataError
    from pydeploy.graph import Graph

    if folder is not None:
        yield folder.graph, folder.model
        return
    if model.endswith(".onnx"):
        if graph is None:
            raise ConfigError(
                "an ONNX model needs --graph with its structure: write it with 'pydeploy trace MODEL --out graph.json'"
            )
        if inputs or options:
            raise ConfigError(
                f"{model} has its inputs and options in the file; --input and --option are for PyTorch models"
            )
        if not Path(model).is_file():
            raise DataError(f"{model} does not exist; export it with 'pydeploy export'")
        yield Graph.load(graph), Path(model)
        return
    from pydeploy.cli import arguments
    from pydeploy.export import export
    from pydeploy.prune.structure.trace import trace

    net, example = arguments.model_named(model, options), arguments.example(inputs)
    with tempfile.TemporaryDirectory(prefix="pydeploy-") as place:
        yield trace(net, example), export(net, example, Path(place) / "dense.onnx", batch=batch)


@app.command()
def probes(
    model: Annotated[str, typer.Argument(help=f"{MODEL_HELP[:-1]}; or MODEL.onnx together with --graph.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    input: Annotated[Optional[list[str]], typer.Option("--input", help=INPUT_HELP)] = None,
    option: Annotated[Optional[list[str]], typer.Option("--option", "-o", help=OPTION_HELP)] = None,
    graph: Annotated[Optional[Path], typer.Option(help="Graph JSON of an ONNX model ('pydeploy trace --out').")] = None,
    points: Annotated[int, typer.Option(min=2, max=31, help="Most widths measured for one group.")] = 7,
    align: Annotated[
        Optional[int],
        typer.Option(min=1, max=1_000_000, help="Widths are multiples of this; else what suits --target, or 8."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=1_000_000, help="Batch size.")] = 1,
    trtexec: Annotated[str, typer.Option(help="Also write measure.sh for this version of TensorRT, e.g. 10.3.")] = "",
    target: Annotated[str, typer.Option(help=TARGET_HELP)] = "tensorrt:fp16",
    engines: Annotated[
        bool,
        typer.Option(
            "--engines", help="Build the networks' engines here, where --target can be built without its device."
        ),
    ] = False,
    gpus: Annotated[Optional[str], typer.Option("--for", help=GPUS_HELP)] = None,
    limit: Annotated[
        Optional[int], typer.Option(min=1, max=1_000_000, help="For --trtexec and --engines: most networks to build.")
    ] = None,
    json: Json = False,
) -> None:
    """Write what a board needs to measure a table by itself: the network, its structure, the widths to try.

    Example: pydeploy table probes torchvision:resnet18 --input 1x3x224x224 --out probes/
    """
    from pydeploy.backends.base import backend_class, parse_target
    from pydeploy.backends.tensorrt.compat import check_stated, stated_version
    from pydeploy.cli.arguments import backend_named, for_gpus
    from pydeploy.cli.console import tell
    from pydeploy.cli.tensorrt_verbs import converter, precision_and_options
    from pydeploy.latency.board import ProbeFolder
    from pydeploy.latency.probes.design import grid

    target = for_gpus(target, gpus)
    backend = backend_named(target, batch=batch) if engines else None
    if trtexec:
        precision, options = precision_and_options(target)
        version = stated_version(trtexec)
        check_stated(version, precision, implicit=bool(options.calibration))
    asked = parse_target(target)
    align = align or backend_class(asked.backend).align_at(asked.precision, asked.options)
    with _dense(model, input or [], option or [], graph, batch) as (structure, file):
        folder = ProbeFolder.write(out, file, structure, grid(structure, points, align), batch)
    built = 0 if backend is None else folder.build_engines(backend, limit)
    told = f"{folder.engines}: {built} engines for {backend.target()}\n" if backend is not None else ""
    told += f"{out}: copy it to the board, then run there: pydeploy table measure --onnx {out} --target {target} --db FILE\n"
    if trtexec:
        with tempfile.TemporaryDirectory(prefix="pydeploy-") as scratch:
            # With a calibration cache TensorRT quantizes a float file itself.
            convert = None if options.calibration else converter(version, precision, folder.model, Path(scratch))
            script = folder.write_script(version, precision, options, limit=limit, convert=convert)
        told += (f"{script}: or run it there, copy the folder back, and: pydeploy table import {out} --db FILE "
                 f"--device NAME --trt {trtexec} --target {target}\n")  # fmt: skip
    tell(json, {"folder": str(out), "engines": built, "script": str(script) if trtexec else None}, told)


@app.command()
def verify(
    model: Annotated[str, typer.Argument(help=f"{MODEL_HELP[:-1]}; or MODEL.onnx together with --graph.")],
    target: Annotated[str, typer.Option(help=TARGET_HELP)],
    db: Database,
    plans: Annotated[int, typer.Option(min=2, max=1_000_000, help="Random plans to build and measure.")] = 30,
    seed: Annotated[int, typer.Option(help="Seed of the random plans.")] = 0,
    input: Annotated[Optional[list[str]], typer.Option("--input", help=INPUT_HELP)] = None,
    option: Annotated[Optional[list[str]], typer.Option("--option", "-o", help=OPTION_HELP)] = None,
    graph: Annotated[Optional[Path], typer.Option(help="Graph JSON of an ONNX model ('pydeploy trace --out').")] = None,
    batch: Annotated[int, typer.Option(min=1, max=1_000_000, help="Batch size.")] = 1,
    threads: Annotated[int, typer.Option(min=0, max=1024, help="Threads; 0 = all cores this process may use.")] = 0,
    isolated: Annotated[bool, typer.Option(help="Measure isolated layers as well, to compare with.")] = True,
    json: Json = False,
) -> None:
    """Predict random plans that the table was not made from, build and measure them, and print the errors.

    Example: pydeploy table verify torchvision:resnet18 --target onnxruntime:fp32 --plans 30 --seed 0 --db resnet18.sqlite
    """
    from pydeploy.cli.arguments import backend_named
    from pydeploy.cli.console import Terminal, show_json, show_table
    from pydeploy.latency.check.verify import verify as check
    from pydeploy.latency.table.table import Table

    backend, table = backend_named(target, batch=batch, threads=threads), Table.open(db)
    table.target.require(backend.target(), f"the latency table {db}")
    with (
        _dense(model, input or _input_of(table, model), option or [], graph, batch) as (structure, onnx),
        Terminal().bar("verify the latency table") as tick,
    ):
        found = check(structure, onnx, backend, table, plans=plans, seed=seed, isolated=isolated, progress=tick)
    if json:
        show_json({"target": table.target.to_json(), **found.to_json()})
        return
    rows = [("this table", found.table), ("two builds of one plan", found.floor), ("isolated layers", found.isolated),
            ("multiply-accumulates", found.macs)]  # fmt: skip
    sys.stdout.write(f"{table.target}\n")
    show_table(
        ("prediction by", "median_error", "p95_error", "spearman", "n"),
        [(name, f"{e.median_error:.2%}", f"{e.p95_error:.2%}", f"{e.spearman:.3f}", e.n) for name, e in rows if e],
    )
    sys.stdout.write(_disturbance(found))


def _disturbance(found: Verification) -> str:
    """What other load disturbed, as a last line; '' where nothing."""
    if not found.disturbed and not found.isolated_disturbed:
        return ""
    return (
        f"DISTURBED: other load, or another speed than the table's, disturbed {found.disturbed} of {len(found.pairs)} plans and "
        f"{found.isolated_disturbed} of {found.isolated_layers} isolated layers, so these errors prove little; verify again "
        "when nothing else runs\n"
    )


def _input_of(table: Table, model: str) -> list[str]:
    """The input shapes of the PyTorch model that the table was made for; an ONNX file has its own."""
    return [] if model.endswith(".onnx") else table.note("input").split()
