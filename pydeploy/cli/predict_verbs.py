"""``pydeploy predict``: an engine on pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer


def predict(
    engine: Annotated[Path, typer.Argument(help="Engine file written by 'pydeploy build' or a run.")],
    images: Annotated[list[Path], typer.Argument(help="Pictures, or folders of them.")],
    out: Annotated[Path, typer.Option(help="Folder for predictions.json and the pictures with their labels.")],
    preprocessing: Annotated[
        Optional[Path], typer.Option(help="preprocessing.json of the engine [default: the one beside it].")
    ] = None,
    top: Annotated[int, typer.Option(min=1, max=1000, help="Labels a picture.")] = 5,
    draw: Annotated[bool, typer.Option(help="Write the labels on the pictures.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print predictions.json instead of a table.")] = False,
) -> None:
    """Run an engine on pictures: labels with scores, as JSON and drawn on the pictures.

    Example: pydeploy predict runs/demo/08_pruned/model.engine photos/ --out predicted
    """
    from pydeploy.cli.arguments import backend_of
    from pydeploy.cli.console import show_json, show_table
    from pydeploy.data.deployment import FILE, Deployment
    from pydeploy.errors import DataError
    from pydeploy.files import write_json
    from pydeploy.report import predictions

    backend, record = backend_of(engine)
    way = Deployment.load(preprocessing or engine.parent / FILE)
    paths = predictions.listed(images)
    with backend.open(record) as session:
        found = list(predictions.classify(session, way, paths, top))
    data = {"schema": 1, "engine": str(engine), "predictions": [one.to_json() for one in found]}
    write_json(out / "predictions.json", data)
    width = len(str(len(found)))
    for number, one in enumerate(found):
        if draw and not one.error:
            predictions.draw(one, out / f"{number:0{width}}_{one.path.stem}.jpg")
    if json:
        show_json(data)
    else:
        rows = [(str(one.path), *(one.top[0] if one.top else (f"not read: {one.error}", 0.0))) for one in found]
        show_table(("picture", "label", "score>"), [(path, label, f"{score:.3f}") for path, label, score in rows])
    if failed := [one for one in found if one.error]:
        sys.stdout.flush()
        raise DataError(f"{len(failed)} of {len(found)} pictures cannot be read ({failed[0].path}: {failed[0].error}); the others "
                        f"are in {out}")  # fmt: skip
