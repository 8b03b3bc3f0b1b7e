"""``pydeploy predict``: an engine on pictures."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Optional

import typer

from pydeploy.cli.arguments import Json


def predict(
    engine: Annotated[Path, typer.Argument(help="Engine file written by 'pydeploy build' or a run.")],
    images: Annotated[list[Path], typer.Argument(help="Pictures, or folders of them.")],
    out: Annotated[
        Path, typer.Option(help="Folder for predictions.json and the pictures with what was found on them (PNG).")
    ],
    preprocessing: Annotated[
        Optional[Path], typer.Option(help="preprocessing.json of the engine [default: the one beside it].")
    ] = None,
    top: Annotated[int, typer.Option(min=1, max=1000, help="Labels a picture, of a classifier.")] = 5,
    draw: Annotated[bool, typer.Option(help="Draw what was found on the pictures.")] = True,
    json: Json = False,
) -> None:
    """Run an engine on pictures: labels, masks, boxes or defects, as JSON and drawn on the pictures.

    Example: pydeploy predict runs/demo/08_pruned/model.engine photos/ --out predicted
    """
    from pydeploy.cli.arguments import backend_of
    from pydeploy.cli.console import show_json, show_table
    from pydeploy.data.deployment import FILE, Deployment
    from pydeploy.errors import DataError
    from pydeploy.files import write_json
    from pydeploy.report import predictions
    from pydeploy.tasks.readings import reading_of

    backend, record = backend_of(engine)
    way = Deployment.load(preprocessing or engine.parent / FILE)
    reading = reading_of(replace(way, settings={**way.settings, "top": top}) if way.kind == "classification" else way)
    paths = predictions.listed(images)
    with backend.open(record) as session:
        found = list(predictions.predictions(session, reading, paths))
    data = {"schema": 1, "engine": str(engine), "kind": way.kind, "predictions": [one.to_json() for one in found]}
    write_json(out / "predictions.json", data)
    width = len(str(len(found)))
    for number, one in enumerate(found):
        if draw and not one.error:
            drawn = reading.draw(predictions.shown(one.path, way), one.record)
            predictions.save_picture(drawn, out / f"{number:0{width}}_{one.path.stem}.png")
    if json:
        show_json(data)
    else:
        said = [f"not read: {one.error}" if one.error else reading.headline(one.record) for one in found]
        show_table(("picture", way.kind), [(str(one.path), text) for one, text in zip(found, said, strict=True)])
    if failed := [one for one in found if one.error]:
        sys.stdout.flush()
        raise DataError(f"{len(failed)} of {len(found)} pictures cannot be read ({failed[0].path}: {failed[0].error}); the others "
                        f"are in {out}")  # fmt: skip
