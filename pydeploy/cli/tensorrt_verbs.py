"""``pydeploy trtexec-command``, and what the other verbs need for machines that have only trtexec."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from pydeploy.cli.arguments import Json

if TYPE_CHECKING:
    import onnx

    from pydeploy.backends.tensorrt.options import Options


def trtexec_command(
    model: Annotated[Path, typer.Argument(help="ONNX file.")],
    target: Annotated[str, typer.Option(help="tensorrt:PRECISION and options.")] = "tensorrt:fp16",
    trt: Annotated[str, typer.Option(help="Version of TensorRT, e.g. 10.3; else that of the installed trtexec.")] = "",
    batch: Annotated[int, typer.Option(min=1, max=1_000_000, help="Batch size, for a file with a dynamic batch.")] = 1,
    json: Json = False,
) -> None:
    """Print the trtexec command that builds and times a model as pydeploy does, for the installed version.

    Its JSON files are read by 'pydeploy profile import' and 'pydeploy table import'.
    Example: pydeploy trtexec-command model.onnx --target tensorrt:int8 --trt 10.3
    """
    from pydeploy.backends.tensorrt import compat, trtexec
    from pydeploy.cli.console import tell

    precision, options = precision_and_options(target)
    program, version = "trtexec", compat.stated_version(trt) if trt else None
    if version is None:
        program, version = _installed()
    implicit = bool(options.calibration)
    typed, shapes = _facts(model, batch, "implicit int8" if implicit else precision)
    needs_types = precision in ("fp16", "bf16", "int8") and compat.is_typed(version, typed_file=False)
    if needs_types and not typed and not implicit:
        half = "bfloat16" if precision == "bf16" else "float16"
        sys.stderr.write(
            f"note: TensorRT {version[0]}.{version[1]} takes precision from the file, and {model} is float: what is not "
            f"quantized would run in fp32. Convert it first: pydeploy half {model} --dtype {half} --out FILE\n"
        )
    found = trtexec.command(
        model, version, precision, program=program, typed_file=typed, options=options, batch_shapes=shapes
    )
    tell(json, {"command": found}, shlex.join(found) + "\n")


def gpu_check(
    out: Annotated[Path, typer.Option(help="Folder for the run and gpu-check.json.")] = Path("runs/gpu-check"),
    config: Annotated[Path, typer.Option(help="Config of the run.")] = Path("fashion_mnist_resnet20_tensorrt"),
    set_: Annotated[Optional[list[str]], typer.Option("--set", help="section.key=value; repeat for several.")] = None,
    json: Json = False,
) -> None:
    """Try on an NVIDIA GPU everything that pydeploy promises there; prints a table and writes gpu-check.json.

    Needs no checkout. Where Fashion-MNIST cannot be had, the pictures are synthetic.
    Example: pydeploy gpu-check --set target.backend=tensorrt-rtx --out runs/gpu-check
    """
    from dataclasses import asdict

    from pydeploy.cli.console import Terminal, tell
    from pydeploy.cli.gpu_check import check_all
    from pydeploy.run.config import load

    settings = load(config, set_ or [])
    out.mkdir(parents=True, exist_ok=True)
    checks = check_all(settings, out, Terminal())
    words = {True: "pass", False: "FAIL", None: "skip"}
    width = max(len(check.name) for check in checks)
    lines = [f"{words[check.passed]}  {check.name.ljust(width)}  {check.detail.splitlines()[0]}\n" for check in checks]
    failed = sum(check.passed is False for check in checks)
    lines.append(f"{len(checks) - failed} of {len(checks)} kept; for a bug report attach {out / 'gpu-check.json'}\n")
    tell(json, [asdict(check) for check in checks], "".join(lines))
    if failed:
        raise typer.Exit(1)


def _installed() -> tuple[str, tuple[int, int]]:
    from pydeploy.backends.tensorrt import trtexec
    from pydeploy.errors import BackendUnavailable

    found = trtexec.find()
    if found is None:
        raise BackendUnavailable(
            "no trtexec on this machine (it comes with TensorRT's Debian packages, archives and containers, not with "
            "pip); say with --trt which version the command is for, e.g. --trt 10.3"
        )
    return found


def _facts(model: Path, batch: int, precision: str) -> tuple[bool, str]:
    """Whether the file states half precision itself, and ``name:shape`` of its dynamic inputs.

    Raises `DataError` for a file that cannot be built at `precision`, or has other dynamic dimensions than the batch.
    """
    import onnx

    from pydeploy.backends.tensorrt.sources import dynamic_inputs
    from pydeploy.errors import DataError
    from pydeploy.onnxfile.half import is_typed
    from pydeploy.onnxfile.read import check_precision, input_specs, with_batch

    try:
        loaded = onnx.load(model, format="protobuf", load_external_data=False)
    except Exception as error:  # protobuf's errors share no base with the file system's
        raise DataError(f"{model} is not a readable ONNX file ({error})") from None
    if not loaded.graph.node:
        raise DataError(f"{model} holds no layers; export the model again")
    check_precision(loaded, model, precision)
    input_specs(with_batch(loaded, batch), model)
    shapes = {name: "x".join(map(str, shape)) for name, shape in dynamic_inputs(loaded, batch).items()}
    return is_typed(loaded), ",".join(f"{name}:{shape}" for name, shape in shapes.items())


def precision_and_options(target: str) -> tuple[str, Options]:
    """``tensorrt:int8,sparse`` -> int8 and its options, without asking for a GPU."""
    from pydeploy.backends.tensorrt import compat
    from pydeploy.backends.tensorrt.backend import TensorRt
    from pydeploy.backends.tensorrt.options import Options
    from pydeploy.errors import ConfigError, nearest

    name, _, rest = target.partition(":")
    precision, _, options = rest.partition(",")
    precision = precision or "fp32"
    if name != TensorRt.name or precision not in compat.PRECISIONS:
        raise ConfigError(
            f"the target must be tensorrt:PRECISION, got '{target}'{nearest(precision, compat.PRECISIONS)}"
        )
    return precision, Options.parse(options)


def converter(
    version: tuple[int, int], precision: str, dense: Path, folder: Path
) -> Callable[[onnx.ModelProto], onnx.ModelProto] | None:
    """What makes a float model one that this version builds at `precision`; None where flags do. `folder` is for scratch.

    Int8 probes get the ranges that random inputs have in the model `dense`: latency does not depend on them.
    """
    import onnx

    from pydeploy.backends.tensorrt import compat
    from pydeploy.latency.probes.quantized import int8_transform
    from pydeploy.onnxfile.half import typed_copy

    quantized = int8_transform(dense, "tensorrt", folder) if precision == "int8" else None
    if precision not in ("fp16", "bf16", "int8") or not compat.is_typed(version, typed_file=False):
        return quantized

    def typed(model: onnx.ModelProto) -> onnx.ModelProto:
        onnx.save(model if quantized is None else quantized(model), folder / "typed.onnx")
        return typed_copy(folder / "typed.onnx", precision)

    return typed


def import_folder(folder: Path, db: Path, device: str, trt: str, target: str) -> tuple[int, list[str]]:
    """Put what trtexec measured in a folder of probes into a table, made where it is missing.

    Returns how many networks were added, and which are not measured yet.
    """
    from pydeploy.errors import ConfigError
    from pydeploy.latency.board import ProbeFolder, target_from
    from pydeploy.latency.table.table import Table

    if not device or not trt:
        raise ConfigError("trtexec's files do not say where they were made: give --device and --trt")
    probes = ProbeFolder.load(folder)
    precision, options = precision_and_options(target)
    stated = target_from(device, trt, precision, probes.batch, options)
    probes.measured(stated)  # before a table is made
    added, missing = probes.import_runs(Table.open(db, stated))
    return added, list(missing)
