"""``pydeploy ssd branches`` and ``pydeploy ssd suppression``: what only detectors have."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from pydeploy.cli.arguments import MODEL_HELP, OPTION_HELP, Json, Strict

app = typer.Typer(
    help="What only detectors have: branches and suppression.", no_args_is_help=True, rich_markup_mode=None
)


@app.command()
def branches(
    model: Annotated[str, typer.Argument(help=f"An SSD: {MODEL_HELP}")],
    weights: Annotated[Path, typer.Option(help="Its trained tensors, best trained with 'train.sparsity'.")],
    out: Annotated[Path, typer.Option(help="Folder for network.cfg and weights.safetensors.")],
    threshold: Annotated[
        float, typer.Option(min=0, help="A layer is dead where all its batch norm's factors are below.")
    ] = 1e-3,
    option: Annotated[Optional[list[str]], typer.Option("--option", "-o", help=OPTION_HELP)] = None,
    strict: Strict = True,
    json: Json = False,
) -> None:
    """Drop the branches of an SSD that come after a dead layer, with their heads, maps and priors.

    Writes the network that is left, and says what builds it in a config; training matches objects with its priors anew.

    Example: pydeploy ssd branches pydeploy:ssd300_vgg16_bn --weights sparse.safetensors --out fewer
    """
    from pydeploy.cli import arguments
    from pydeploy.cli.console import show_json
    from pydeploy.errors import ConfigError
    from pydeploy.models.detection.ssd import SSD

    net = arguments.dense_or_cut(model, option or [], weights, strict=strict)
    if not isinstance(net, SSD):
        raise ConfigError(f"{model} is no SSD of pydeploy (ssd300_vgg16_bn, ssd320_mobilenetv2, ssd_small, ssd_cfg)")
    levels = net.live_levels(threshold)
    cut = net.first(levels)
    cut.save(out)
    section = {"name": "ssd_cfg", "options": {"cfg": str(out / "network.cfg"), **cut.options},
               "weights": str(out / "weights.safetensors")}  # fmt: skip
    if json:
        show_json({"branches": levels, "of": len(net.scores), "model": section})
        return
    sys.stdout.write(f"{levels} of {len(net.scores)} branches live; in a config: model: {section}\n")


@app.command()
def suppression(
    model: Annotated[Path, typer.Argument(help="ONNX file of an SSD that ends at raw scores and boxes.")],
    out: Annotated[Path, typer.Option(help="ONNX file that ends at boxes, scores and those that stay.")],
    preprocessing: Annotated[
        Optional[Path], typer.Option(help="preprocessing.json with its priors [default: the one beside it].")
    ] = None,
    score: Annotated[
        Optional[float], typer.Option(min=0, max=1, help="Least score that stays [default: preprocessing.json's].")
    ] = None,
    json: Json = False,
) -> None:
    """Put decoding and non-maximum suppression into the file of an SSD, by ONNX's operator NonMaxSuppression.

    Example: pydeploy ssd suppression runs/neu/08_pruned/model.onnx --out whole.onnx
    """
    from dataclasses import replace

    from pydeploy.cli.console import show_json
    from pydeploy.data.boxes.suppression import OUTPUTS, with_suppression
    from pydeploy.data.deployment import FILE, Deployment
    from pydeploy.errors import ConfigError
    from pydeploy.tasks.readings import reading_of
    from pydeploy.tasks.readings.detection import Boxes

    way = Deployment.load(preprocessing or model.parent / FILE)
    reading = reading_of(way)
    if not isinstance(reading, Boxes):
        raise ConfigError(f"the preprocessing is that of {way.kind}; expected that of a detector")
    cleaning = reading.cleaning if score is None else replace(reading.cleaning, score=score)
    with_suppression(model, out, reading.priors, cleaning, (way.outputs[0], way.outputs[1]))
    if json:
        show_json({"out": str(out), "outputs": list(OUTPUTS)})
        return
    sys.stdout.write(f"{out}: outputs {', '.join(OUTPUTS)}\n")
