"""``pydeploy table show``, ``plot``, ``export``, ``import`` and ``merge``: the verbs that only read and write files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pydeploy.cli.arguments import Json
from pydeploy.cli.table_verbs import Database
from pydeploy.cli.table_verbs import app as app  # the same group of verbs
from pydeploy.guests.patterns import matches

if TYPE_CHECKING:
    from pydeploy.graph import OpKey
    from pydeploy.latency.table.interpolation import Lookup
    from pydeploy.latency.table.table import Table
    from pydeploy.timing.records import Padding

LAYER_HELP = "Only layers whose description contains this text, or is of this pattern with *."


def _keys(table: Table, text: str) -> list[OpKey]:
    return sorted({row.key for row in table.rows() if text in str(row.key) or matches(str(row.key), text)})


@app.command()
def show(
    db: Database,
    layer: Annotated[str, typer.Option(help=LAYER_HELP)] = "",
    json: Json = False,
) -> None:
    """List a table's layers with n, spread and the confidence interval of the median.

    Example: pydeploy table show --db resnet18.sqlite --layer conv3x3
    """
    from pydeploy.cli.console import show_json, show_table
    from pydeploy.latency.table.table import Table

    table = Table.open(db)
    found, padding = [(key, table.lookup(key)) for key in _keys(table, layer)], table.padding()
    if json:
        rows = [{"key": key.to_list(), "latency_us": f.latency_us, "n": f.n, "sets": f.sets, "spread": f.spread,
                 "interval": f.interval, "disturbed": f.disturbed, "padding": padding.get(key)} for key, f in found]  # fmt: skip
        show_json({"target": table.target.to_json(), "conditions": table.conditions, "layers": rows})
        return
    sys.stdout.write(f"{table.target}\n")
    for one in table.conditions[-1:]:
        sys.stdout.write("last measured: " + ", ".join(f"{name} {value}" for name, value in one.items()) + "\n")
    show_table(
        ("layer", "latency_us", "n", "spread", "+-", "note"),
        [(str(k), round(f.latency_us, 2), f.n, f"{f.spread:.1%}", f"{f.interval:.1%}", _note(k, f, padding.get(k)))
         for k, f in found],
    )  # fmt: skip


def _note(key: OpKey, found: Lookup, padding: Padding | None) -> str:
    """What is worth knowing of a layer: disturbed samples, and the channels that the runtime really computes with."""
    notes = ["disturbed"] if found.disturbed else []
    for name, width, multiple in zip(("cin", "cout"), (key.cin, key.cout), padding or (0, 0), strict=True):
        if multiple and width % multiple:
            notes.append(f"{name} padded to {-(-width // multiple) * multiple}")
    return ", ".join(notes)


@app.command()
def plot(
    db: Database,
    layer: Annotated[str, typer.Option(help=LAYER_HELP + " Of several kinds the most measured one is drawn.")] = "",
    out: Annotated[Path, typer.Option(help="File to write: .html, .png or .svg.")] = Path("stairs.html"),
    json: Json = False,
) -> None:
    """Draw the stairs of a layer: latency over output channels, for up to four numbers of input channels.

    Example: pydeploy table plot --db resnet18.sqlite --layer "conv3x3/s1" --out stairs.html
    """
    from dataclasses import replace

    from pydeploy.cli.console import tell
    from pydeploy.errors import ConfigError, DataError
    from pydeploy.latency.table.table import Table
    from pydeploy.report.stairs import MOST, Step, write

    if out.suffix not in (".html", ".png", ".svg"):
        raise ConfigError(f"--out must end in .html, .png or .svg, got '{out.name}'")
    table = Table.open(db)
    kinds: dict[OpKey, dict[int, list[Step]]] = {}
    for key in _keys(table, layer):
        found = table.lookup(key)
        kind = replace(key, cin=0, cout=0, groups=1 if key.groups == 1 else 0)
        step = Step(key.cout, found.latency_us, found.p10_us, found.p90_us)
        # A depthwise layer's widths move together, so all its widths make one line.
        kinds.setdefault(kind, {}).setdefault(key.cin if key.groups == 1 else 0, []).append(step)
    if not kinds:
        raise DataError(f"{db} has no layer whose description contains '{layer}'; list them with 'pydeploy table show'")
    kind, by_cin = max(kinds.items(), key=lambda pair: sum(map(len, pair[1].values())))
    cins = sorted(by_cin)
    chosen = [cins[round(i * (len(cins) - 1) / max(1, min(MOST, len(cins)) - 1))] for i in range(min(MOST, len(cins)))]
    lines = {f"cin={cin}" if cin else "depthwise": by_cin[cin] for cin in reversed(chosen)}
    n, sets = (sum(getattr(table.lookup(key), name) for key in _keys(table, layer)) for name in ("n", "sets"))
    title = f"{str(kind).replace(' cin=0 cout=0', '')}, {table.target.backend} {table.target.precision} ({n} runs, {sets} sets)"
    write(out, title, lines)
    tell(json, {"chart": str(out), "title": title}, f"{out}: {title}\n")


@app.command("export")
def export_(
    db: Database,
    out: Annotated[Path, typer.Option(help="File to write; .csv or .json.")],
    json: Json = False,
) -> None:
    """Write a table as CSV or JSON.

    Example: pydeploy table export --db resnet18.sqlite --out resnet18.json
    """
    from pydeploy.cli.console import tell
    from pydeploy.errors import ConfigError
    from pydeploy.latency.table.table import Table

    table = Table.open(db)
    writers = {".csv": table.to_csv, ".json": table.to_json}
    if out.suffix not in writers:
        raise ConfigError(f"--out must end in .csv or .json, got '{out.name}'")
    writers[out.suffix](out)
    tell(json, {"file": str(out)}, f"{out}\n")


@app.command("import")
def import_(
    file: Annotated[
        Path,
        typer.Argument(
            help="CSV or JSON of 'pydeploy table export'; a folder measured by trtexec; or a list of "
            "convolutions (.txt), one '{conv_type,batch,in_c,in_h,in_w,out_c,kernel,stride,fused} ms' a line."
        ),
    ],
    db: Database,
    device: Annotated[str, typer.Option(help="For a folder or a list: name of the device, e.g. 'NVIDIA V100'.")] = "",
    trt: Annotated[str, typer.Option(help="For a folder or a list: version of TensorRT, e.g. 10.3.")] = "",
    target: Annotated[
        str, typer.Option(help="For a folder or a list: BACKEND:PRECISION and options.")
    ] = "tensorrt:fp16",
    batch: Annotated[int, typer.Option(min=1, max=1_000_000, help="For a list: batch size of the rows to take.")] = 1,
    json: Json = False,
) -> None:
    """Add rows of an exported table, of what trtexec measured in a folder of probes, or of a list of convolutions.

    Example: pydeploy table import resnet18.json --db resnet18.sqlite
    """
    from pydeploy.cli.console import tell

    if file.is_dir():
        from pydeploy.cli.tensorrt_verbs import import_folder

        added, missing = import_folder(file, db, device, trt, target)
        few = f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}"
        note = f", {len(missing)} not measured yet ({few})" if missing else ""
        tell(json, {"table": str(db), "networks": added, "missing": missing}, f"{added} networks added to {db}{note}\n")
        return
    from pydeploy.errors import ConfigError, DataError
    from pydeploy.files import read_json
    from pydeploy.latency.table.foreign import read_lines
    from pydeploy.latency.table.table import Table, provenance
    from pydeploy.timing.records import Target

    suffix = file.suffix.lower()
    if suffix not in (".csv", ".json"):
        table = _table_for_list(db, device, trt, target, batch)
        found = read_lines(file, table.target.batch)
        table.add(found, provenance("lines", file.name))
        tell(json, {"table": str(db), "layers": len(found)}, f"{len(found)} layers added to {db}\n")
        return
    if db.exists():
        table = Table.open(db)
    elif suffix == ".json":
        data = read_json(file)
        if not isinstance(data, dict) or "target" not in data:
            raise DataError(
                f"{file} is not an exported latency table; trtexec's files are imported as a folder of probes"
            )
        table = Table.open(db, Target.from_json(data["target"]))
    else:
        raise ConfigError(
            f"{db} does not exist, and a CSV file does not say its target; import the JSON export instead"
        )
    count = table.import_file(file)
    tell(json, {"table": str(db), "sample_sets": count}, f"{count} sample sets added to {db}\n")


def _table_for_list(db: Path, device: str, trt: str, target: str, batch: int) -> Table:
    """The table in `db`, or a new one for the device that the user names."""
    from pydeploy.backends.base import parse_target
    from pydeploy.errors import ConfigError
    from pydeploy.latency.table.table import Table
    from pydeploy.timing.records import Target

    if db.exists() and not device:
        return Table.open(db)
    if not (device and ":" in target):
        raise ConfigError(
            "a list of layers does not say where it was measured: give --device and --target BACKEND:PRECISION"
        )
    asked = parse_target(target)
    facts = {"options": asked.options} if asked.options else {}
    return Table.open(db, Target(device, asked.backend, trt or "unknown", asked.precision, batch, 0, facts))


@app.command()
def merge(
    sources: Annotated[list[Path], typer.Argument(help="Tables of the same target.")],
    db: Database,
    json: Json = False,
) -> None:
    """Add the rows of other tables that this one lacks; a table that does not exist yet is made.

    Example: pydeploy table merge night.sqlite day.sqlite --db resnet18.sqlite
    """
    from pydeploy.cli.console import tell
    from pydeploy.latency.table.table import Table

    rows = {}
    for source in sources:
        other = Table.open(source)
        rows[str(source)] = Table.open(db, other.target).merge(other)
    told = "".join(f"{count} rows of {source} added to {db}\n" for source, count in rows.items())
    tell(json, {"table": str(db), "rows": rows}, told)
