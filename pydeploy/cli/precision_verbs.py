"""``pydeploy choose-precision``: from an ONNX file alone to the engine to ship. Needs no torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from pydeploy.cli.arguments import Json

if TYPE_CHECKING:
    from pydeploy.backends.base import Feeds
    from pydeploy.planning.choose_precision import Verdict


def choose_precision(
    model: Annotated[Path, typer.Argument(help="ONNX file (float).")],
    data: Annotated[Path, typer.Option(help="Calibration manifest; every fourth batch of it judges.")],
    target: Annotated[str, typer.Option(help="Backend, e.g. onnxruntime or openvino; all its precisions are tried.")],
    out: Annotated[Path, typer.Option(help="Folder for engines, files and precisions.json.")],
    limit: Annotated[
        float,
        typer.Option(min=0, help="Most that may be lost, in percent: of best classes changed, or relative error."),
    ] = 2.0,
    batch: Annotated[int, typer.Option(min=1, max=1_000_000, help="Batch size that the engines are built for.")] = 1,
    threads: Annotated[int, typer.Option(min=0, max=1024, help="Threads; 0 = all cores this process may use.")] = 0,
    observer: Annotated[str, typer.Option(help="mse, entropy, percentile, moving_average or minmax.")] = "mse",
    exclude: Annotated[
        Optional[list[str]], typer.Option(help="Layers that stay in float (pattern with *); repeat.")
    ] = None,
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
    from pydeploy.tasks.samples import exact_batches, manifest_batches

    manifest, name = load_manifest(data), input_of(model)
    out.mkdir(parents=True, exist_ok=True)

    def samples() -> Iterator[Feeds]:
        return exact_batches(({name: part.copy()} for part in manifest_batches(manifest, threads, batch)), batch)

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
