"""``pydeploy table``: measure, show, export, import."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from pydeploy.cli.arguments import INPUT_HELP, MODEL_HELP, OPTION_HELP, TARGET_HELP

if TYPE_CHECKING:
    from pydeploy.graph import Graph

app = typer.Typer(help="Latency tables: measure, show, export, import.", no_args_is_help=True, rich_markup_mode=None)

Database = Annotated[Path, typer.Option("--db", help="Table file (SQLite).")]


@app.command()
def measure(
    model: Annotated[str, typer.Argument(help=f"{MODEL_HELP[:-1]}; or MODEL.onnx together with --graph.")],
    target: Annotated[str, typer.Option(help=TARGET_HELP)],
    db: Database,
    input: Annotated[Optional[list[str]], typer.Option("--input", help=INPUT_HELP)] = None,
    option: Annotated[Optional[list[str]], typer.Option("--option", "-o", help=OPTION_HELP)] = None,
    graph: Annotated[Optional[Path], typer.Option(help="Graph JSON of an ONNX model ('pydeploy trace --out').")] = None,
    points: Annotated[int, typer.Option(min=2, max=31, help="Most widths measured for one group.")] = 7,
    align: Annotated[int, typer.Option(min=1, help="Widths are multiples of this.")] = 8,
    batch: Annotated[int, typer.Option(min=1, help="Batch size.")] = 1,
    threads: Annotated[int, typer.Option(min=0, help="Threads; 0 = all cores this process may use.")] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 8,
    runs: Annotated[int, typer.Option(min=1, help="Runs in a round.")] = 10,
) -> None:
    """Measure layers inside networks at planned widths; what the table holds already is kept.

    Example: pydeploy table measure torchvision:resnet18 --input 1x3x224x224 --target onnxruntime:fp32 --db resnet18.sqlite
    """
    from pydeploy.cli.arguments import backend_named
    from pydeploy.cli.console import Terminal
    from pydeploy.latency.design import grid
    from pydeploy.latency.measure import measure as fill
    from pydeploy.latency.table import Table

    backend, terminal = backend_named(target, batch=batch, threads=threads), Terminal()
    with _dense(model, input or [], option or [], graph, batch) as (structure, onnx):
        table = Table.open(db, backend.target())
        with terminal.bar("measure the latency table") as tick:
            done = fill(structure, onnx, backend, table, widths=grid(structure, points, align), rounds=rounds, runs=runs,
                        progress=tick, announce=lambda s: terminal.say(f"about {s:.0f} s"))  # fmt: skip
    sys.stdout.write(f"{db}: {done.measured} networks measured, {done.skipped} kept, {done.disturbed} disturbed, "
                     f"{done.seconds:.0f} s on {backend.target()}\n")  # fmt: skip


@contextmanager
def _dense(
    model: str, inputs: list[str], options: list[str], graph: Path | None, batch: int
) -> Iterator[tuple[Graph, Path]]:
    """Graph and ONNX file of the dense model; made from the model, or given as files (then torch is not needed)."""
    from pydeploy.errors import ConfigError
    from pydeploy.graph import Graph

    if model.endswith(".onnx"):
        if graph is None:
            raise ConfigError(
                "an ONNX model needs --graph with its structure: write it with 'pydeploy trace MODEL --out graph.json'"
            )
        yield Graph.load(graph), Path(model)
        return
    from pydeploy.cli import arguments
    from pydeploy.export import export
    from pydeploy.prune.trace import trace

    net, example = arguments.model_named(model, options), arguments.example(inputs)
    with tempfile.TemporaryDirectory(prefix="pydeploy-") as folder:
        yield trace(net, example), export(net, example, Path(folder) / "dense.onnx", batch=batch)


@app.command()
def show(
    db: Database,
    layer: Annotated[str, typer.Option(help="Only layers whose description contains this text.")] = "",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List a table's layers with n and spread.

    Example: pydeploy table show --db resnet18.sqlite --layer conv3x3
    """
    from pydeploy.cli.console import show_json, show_table
    from pydeploy.latency.table import Table

    table = Table.open(db)
    keys = sorted({row.key for row in table.rows() if layer in str(row.key)})
    found = [(key, table.lookup(key)) for key in keys]
    if json:
        rows = [{"key": key.to_list(), "latency_us": f.latency_us, "n": f.n, "spread": f.spread} for key, f in found]
        show_json({"target": table.target.to_json(), "layers": rows})
        return
    sys.stdout.write(f"{table.target}\n")
    show_table(
        ("layer", "latency_us", "n", "spread"),
        [(str(k), round(f.latency_us, 2), f.n, f"{f.spread:.1%}") for k, f in found],
    )


@app.command("export")
def export_(
    db: Database,
    out: Annotated[Path, typer.Option(help="File to write; .csv or .json.")],
) -> None:
    """Write a table as CSV or JSON.

    Example: pydeploy table export --db resnet18.sqlite --out resnet18.json
    """
    from pydeploy.errors import ConfigError
    from pydeploy.latency.table import Table

    table = Table.open(db)
    writers = {".csv": table.to_csv, ".json": table.to_json}
    if out.suffix not in writers:
        raise ConfigError(f"--out must end in .csv or .json, got '{out.name}'")
    writers[out.suffix](out)
    sys.stdout.write(f"{out}\n")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="CSV or JSON written by 'pydeploy table export'.")],
    db: Database,
) -> None:
    """Add the rows of an exported table of the same target to a table.

    Example: pydeploy table import resnet18.json --db resnet18.sqlite
    """
    from pydeploy.errors import ConfigError
    from pydeploy.files import read_json
    from pydeploy.latency.table import Table
    from pydeploy.timing import Target

    if db.exists():
        table = Table.open(db)
    elif file.suffix == ".json":
        table = Table.open(db, Target.from_json(read_json(file).get("target", {})))
    else:
        raise ConfigError(
            f"{db} does not exist, and a CSV file does not say its target; import the JSON export instead"
        )
    sys.stdout.write(f"{table.import_file(file)} sample sets added to {db}\n")
