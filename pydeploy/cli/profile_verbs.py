"""``pydeploy profile ENGINE`` measures an engine, ``pydeploy profile import`` reads what trtexec measured elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer
from typer.core import TyperGroup

from pydeploy.cli.arguments import Json
from pydeploy.cli.engine_verbs import measure

_DEFAULT = "engine"


class _EngineByDefault(TyperGroup):
    """What is not the name of a verb is an engine file (or an option of measuring one)."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override,unused-ignore]
        if args and args[0] not in {*self.commands, "-h", "--help"}:
            args.insert(0, _DEFAULT)
        return super().parse_args(ctx, args)


HELP = """Measure an engine ('profile ENGINE'), or import what trtexec measured ('profile import').

Example: pydeploy profile runs/demo/08_pruned/model.engine
"""

app = typer.Typer(cls=_EngineByDefault, help=HELP, no_args_is_help=True, rich_markup_mode=None)
app.command(_DEFAULT)(measure)


@app.command("import")
def import_(
    times: Annotated[Path, typer.Option(help="File of trtexec --exportTimes.")],
    profile: Annotated[Path, typer.Option(help="File of trtexec --exportProfile.")],
    layers: Annotated[Path, typer.Option(help="File of trtexec --exportLayerInfo.")],
    device: Annotated[str, typer.Option(help="Name of the device, e.g. 'Jetson Orin Nano'.")],
    trt: Annotated[str, typer.Option(help="Version of TensorRT, e.g. 10.3.")],
    target: Annotated[str, typer.Option(help="tensorrt:PRECISION and options.")] = "tensorrt:fp16",
    batch: Annotated[int, typer.Option(min=1, max=1_000_000, help="Batch size of the engine.")] = 1,
    graph: Annotated[Optional[Path], typer.Option(help="Graph JSON: layers are then the model's operators.")] = None,
    out: Annotated[Optional[Path], typer.Option(help="Profile file (JSON) to write.")] = None,
    json: Json = False,
) -> None:
    """Read trtexec's JSON files as a profile.

    Example: pydeploy profile import --times net.times.json --profile net.profile.json --layers net.layers.json --device Orin --trt 10.3
    """
    from pydeploy.backends.tensorrt.trtexec import Files, read_run
    from pydeploy.cli.console import show_json, show_profile
    from pydeploy.cli.tensorrt_verbs import precision_and_options
    from pydeploy.files import write_json
    from pydeploy.graph import Graph
    from pydeploy.latency.board import profile_from, target_from

    precision, options = precision_and_options(target)
    ops = None if graph is None else [op.name for op in Graph.load(graph).ops]
    stated = target_from(device, trt, precision, batch, options)
    found = profile_from(read_run(Files(times, profile, layers)), stated, ops)
    if out is not None:
        write_json(out, found.to_json())
    if json:
        show_json(found.to_json())
    else:
        show_profile(found)
