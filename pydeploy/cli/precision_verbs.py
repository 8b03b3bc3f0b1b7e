"""``pydeploy choose-precision`` and ``mix``: from an ONNX file alone to the engine to ship, or to its mixed form. No torch."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from pydeploy.cli.arguments import Json

if TYPE_CHECKING:
    from pydeploy.backends.base import Feeds
    from pydeploy.data.manifest import Manifest
    from pydeploy.planning.choose_precision import Verdict

Limit = Annotated[
    float, typer.Option(min=0, help="Most that may be lost, in percent: of best classes changed, or relative error.")
]
Batch = Annotated[int, typer.Option(min=1, max=1_000_000, help="Batch size that the engines are built for.")]
Threads = Annotated[int, typer.Option(min=0, max=1024, help="Threads; 0 = all cores this process may use.")]
Exclude = Annotated[Optional[list[str]], typer.Option(help="Layers that stay in float (pattern with *); repeat.")]


def choose_precision(
    model: Annotated[Path, typer.Argument(help="ONNX file (float).")],
    data: Annotated[Path, typer.Option(help="Calibration manifest; every fourth batch of it judges.")],
    target: Annotated[str, typer.Option(help="Backend, e.g. onnxruntime or openvino; all its precisions are tried.")],
    out: Annotated[Path, typer.Option(help="Folder for engines, files and precisions.json.")],
    limit: Limit = 2.0,
    batch: Batch = 1,
    threads: Threads = 0,
    observer: Annotated[str, typer.Option(help="mse, entropy, percentile, moving_average or minmax.")] = "mse",
    exclude: Exclude = None,
    json: Json = False,
) -> None:
    """Make float, half, INT8 and mixed engines of an ONNX file, time them in turns, recommend the fastest within a limit.

    Exit code 0: another engine than float is recommended; 1: float is.
    Example: pydeploy choose-precision model.onnx --data calib.yaml --target onnxruntime --limit 2 --out precisions/
    """
    from pydeploy.cli.console import Terminal, show_json
    from pydeploy.cli.engine_verbs import input_of
    from pydeploy.data.manifest import load_manifest
    from pydeploy.files import write_json, write_text
    from pydeploy.planning.choose_precision import choose_precision as choose

    manifest, name = load_manifest(data), input_of(model)
    out.mkdir(parents=True, exist_ok=True)

    samples = partial(_samples, manifest, name, threads, batch)
    found = choose(model, manifest, samples, target, out, limit=limit, batch=batch, threads=threads, observer=observer,
                   exclude=exclude or [], say=Terminal().say)  # fmt: skip
    write_json(out / "precisions.json", found.to_json())
    write_text(out / "precisions.md", page(found, model))
    if json:
        show_json(found.to_json())
    else:
        sys.stdout.write(page(found, model))
    if not found.faster:
        raise typer.Exit(1)


def mix(
    model: Annotated[Path, typer.Argument(help="ONNX file (float).")],
    ranges: Annotated[Path, typer.Option(help="Ranges file written by 'pydeploy calibrate'.")],
    data: Annotated[Path, typer.Option(help="Manifest of samples; every fourth batch of it judges.")],
    target: Annotated[str, typer.Option(help="Backend with int8, e.g. onnxruntime or openvino.")],
    out: Annotated[Path, typer.Option(help="ONNX file with Q/DQ at the chosen layers.")],
    limit: Limit = 2.0,
    batch: Batch = 1,
    threads: Threads = 0,
    exclude: Exclude = None,
    json: Json = False,
) -> None:
    """Write the form of an ONNX file that is INT8 only for the layers where it saves time within a limit.

    Float, INT8 and mixed engines are built and measured. Exit code 0: the file is written (INT8 throughout where that is best);
    1: no layer is best in INT8, nothing is written.
    Example: pydeploy mix model.onnx --ranges ranges.json --data calib.yaml --target onnxruntime --out mixed.onnx
    """
    from dataclasses import asdict

    from pydeploy.cli.console import Terminal, show_table, tell
    from pydeploy.cli.engine_verbs import input_of
    from pydeploy.data.manifest import load_manifest
    from pydeploy.files import check_writable, replacing
    from pydeploy.planning.precision_bench import mix as choose
    from pydeploy.quant.observe import Ranges

    check_writable(out)
    manifest, name, known = load_manifest(data), input_of(model), Ranges.load(ranges)

    samples = partial(_samples, manifest, name, threads, batch)
    with tempfile.TemporaryDirectory(prefix="pydeploy-") as folder:
        found, bench = choose(model, known, samples, target, Path(folder), limit=limit, batch=batch, threads=threads,
                              exclude=exclude or [], say=Terminal().say)  # fmt: skip
        engine = "int8" if len(found.int8) == len(found.options) else "mixed"
        if found.int8:
            with replacing(out) as unfinished:
                shutil.copyfile(Path(folder) / f"{engine}.onnx", unfinished)
    lost = bench.lost[engine] if found.int8 else 0.0
    rows = [(option.name, "int8" if option.name in found.int8 else "float", f"{option.float_us:.1f}", f"{option.int8_us:.1f}",
             f"{option.error:.3g}") for option in found.options]  # fmt: skip
    head = (
        f"{out}: {len(found.int8)} of {len(rows)} layers int8, {bench.measure} {lost:.2f} %{_because(found.note)}\n"
        if found.int8
        else f"nothing is written: {found.note}\n"
    )
    tell(json, {"onnx": str(out) if found.int8 else None, "int8": list(found.int8), "note": found.note, "measure": bench.measure,
                "lost": lost, "layers": [asdict(option) for option in found.options]}, head)  # fmt: skip
    if not json:
        show_table(("layer", "precision", "float_us", "int8_us", "error"), rows)
    if not found.int8:
        raise typer.Exit(1)


def _samples(manifest: Manifest, name: str, threads: int, batch: int) -> Iterator[Feeds]:
    """The manifest's samples under the input `name`, in batches of exactly `batch`."""
    from pydeploy.tasks.samples import exact_batches, manifest_batches

    return exact_batches(({name: part.copy()} for part in manifest_batches(manifest, threads, batch)), batch)


def _because(note: str) -> str:
    return f" ({note})" if note else ""


def page(found: Verdict, model: Path) -> str:
    """The verdict as Markdown."""
    head = [
        "engine",
        "latency in us, median (p10 to p90)",
        "of float, 95 % interval",
        f"{found.measure}, %",
        "int8 layers",
        "bytes",
    ]
    rows = [
        [f"**{one.name}**" if one.name == found.recommended else one.name,
         f"{one.latency.median_us:.1f} ({one.latency.p10_us:.1f} to {one.latency.p90_us:.1f})", str(one.ratio),
         f"{one.lost:.2f}", str(one.int8_layers), f"{one.bytes:,}"]
        for one in found.engines
    ]  # fmt: skip
    table = "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])
    reasons = "\n".join(f"- {reason}" for reason in found.reasons)
    return (
        f"# {model.name}: {found.recommended} is recommended\n\n{found.target}; judged on {found.samples} samples that took no part "
        f"in calibration, limit {found.limit:g} %.\n\n{table}\n\n{reasons}\n"
    )
