"""``pydeploy export-weights``: weights as plain files for programs that load no ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from pydeploy.cli.arguments import INPUT_HELP, MODEL_HELP, OPTION_HELP, Json, Strict

if TYPE_CHECKING:
    from pydeploy.quant.weights.records import Weights


def export_weights(
    model: Annotated[str, typer.Argument(help=f"ONNX file, float or int8 (with Q/DQ pairs), or a model: {MODEL_HELP}")],
    out: Annotated[Path, typer.Option(help="Folder for the data and manifest.json.")],
    format: Annotated[str, typer.Option(help="bin, text, npz or c-header.")] = "bin",
    fold_bn: Annotated[bool, typer.Option("--fold-bn", help="Fold batch norms into the layers before them.")] = False,
    input: Annotated[Optional[list[str]], typer.Option("--input", help=INPUT_HELP)] = None,
    option: Annotated[Optional[list[str]], typer.Option("--option", "-o", help=OPTION_HELP)] = None,
    weights: Annotated[Optional[Path], typer.Option(help="Trained weights of the model, dense or cut.")] = None,
    strict: Strict = True,
    json: Json = False,
) -> None:
    """Write weights as plain files: float32; of an int8 file int8 with scales, zero points, int32 biases, fixed-point factors.

    Example: pydeploy export-weights int8.onnx --format bin --out weights/
    """
    from pydeploy.cli.console import tell
    from pydeploy.errors import ConfigError
    from pydeploy.quant.weights.files import MANIFEST, write
    from pydeploy.quant.weights.from_onnx import of_onnx

    if Path(model).suffix != ".onnx":
        found = _of_model(model, input or [], option or [], weights, strict=strict, fold_bn=fold_bn)
    elif input or option or weights or not strict:
        raise ConfigError("an ONNX file is exported as it is: --input, --option and --weights are for a model by name")
    else:
        found = of_onnx(Path(model), fold_bn=fold_bn)
    place = write(found, out, format)
    size = place.stat().st_size
    told = f"{place}: {len(found.tensors)} tensors of {len(found.layers)} layers, {size:,} bytes, described by {out / MANIFEST}\n"
    tell(json, {"data": str(place), "manifest": str(out / MANIFEST), "tensors": len(found.tensors), "layers": len(found.layers),
                "bytes": size}, told)  # fmt: skip


def _of_model(
    model: str, inputs: list[str], options: list[str], weights: Path | None, *, strict: bool, fold_bn: bool
) -> Weights:
    """The state dict in its order."""
    from pydeploy.cli import arguments
    from pydeploy.prune.surgery.fold import fold
    from pydeploy.prune.surgery.masks import unmasked
    from pydeploy.quant.weights.records import Tensor, Weights

    net = unmasked(arguments.dense_or_cut(model, options, weights, strict=strict)).eval()
    if fold_bn:
        net = fold(net, arguments.example(inputs))
    tensors = {name: values.detach().cpu() for name, values in net.state_dict().items()}
    arrays = {
        name: (values.float() if values.is_floating_point() else values).numpy() for name, values in tensors.items()
    }
    return Weights(tuple(Tensor(name, values) for name, values in arrays.items()))
