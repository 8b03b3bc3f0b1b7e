"""Test samples as the dense and the recommended engine see them, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydeploy.backends.base import Engine, reopen
from pydeploy.data.deployment import Deployment
from pydeploy.errors import DeployError
from pydeploy.report import Shown
from pydeploy.report.predictions import save_picture
from pydeploy.run.artefacts import Artefacts, Files
from pydeploy.run.job import Job
from pydeploy.tasks.readings import READINGS, reading_of
from pydeploy.tasks.readings.base import Reading

COUNT = 6
SMALLEST = 192
"""Pictures whose shorter side has fewer pixels are enlarged by a whole number before anything is drawn."""
GAP = 8


def side_by_side(job: Job, at: Artefacts, folders: dict[str, Path]) -> tuple[Shown, ...]:
    """`COUNT` test samples spread over the test set, read and drawn for each engine in `folders`; empty where nothing is known of
    what outputs mean.
    """
    if job.guest is not None or (way := job.task.deployment()) is None or way.kind not in READINGS:
        return ()
    size, reading = job.task.size("test"), reading_of(way)
    chosen = np.unique(np.linspace(0, size - 1, min(COUNT, size)).astype(np.int64))
    try:
        inputs = [tensor.numpy() for tensor in job.task.samples("test", chosen).inputs]
        records = {name: _records(job, folder, reading, inputs) for name, folder in folders.items()}
        made = []
        for row, index in enumerate(chosen):
            picture = _picture(inputs[0][row], way)
            drawn = [reading.draw(picture, found[row]) for found in records.values()]
            file = at.samples / f"{index}.png"
            save_picture(_joined(drawn), file)
            said = {name: reading.headline(found[row]) for name, found in records.items()}
            made.append(Shown(index=int(index), file=file.relative_to(at.root).as_posix(), said=said))
        return tuple(made)
    except DeployError as error:  # a picture is no reason to lose a report
        job.console.say(f"no test samples are shown: {error}")
        return ()


def _records(job: Job, folder: Path, reading: Reading, inputs: list[NDArray[Any]]) -> list[dict[str, Any]]:
    """The record of every sample by the engine in a folder."""
    from pydeploy.tasks.evaluate import padded

    engine = Engine.load(Files(folder).engine)
    backend, found = reopen(engine.target), []
    with backend.open(engine) as session:
        for start in range(0, len(inputs[0]), backend.batch):
            parts = [array[start : start + backend.batch] for array in inputs]
            feeds = {name: padded(part, backend.batch) for name, part in zip(job.task.input_names, parts, strict=True)}
            outputs = session.run(feeds)
            found += [
                reading.read({name: outputs[name][row] for name in job.task.output_names})
                for row in range(len(parts[0]))
            ]
    return found


def _picture(sample: NDArray[np.float32], way: Deployment) -> NDArray[np.uint8]:
    """The network's input as pixels, RGB, large enough to write on."""
    mean, std = (np.array(values)[:, None, None] for values in (way.preprocessing.mean, way.preprocessing.std))
    pixels = np.clip(np.rint(255 * (sample * std + mean)), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    times = -(-SMALLEST // min(pixels.shape[0], pixels.shape[1]))
    rgb = pixels if pixels.shape[2] == 3 else np.repeat(pixels[:, :, :1], 3, axis=2)
    return np.ascontiguousarray(rgb.repeat(times, 0).repeat(times, 1))


def _joined(pictures: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Pictures beside each other on white."""
    height = max(one.shape[0] for one in pictures)
    width = sum(one.shape[1] for one in pictures) + GAP * (len(pictures) - 1)
    whole, left = np.full((height, width, 3), 255, np.uint8), 0
    for one in pictures:
        whole[: one.shape[0], left : left + one.shape[1]] = one
        left += one.shape[1] + GAP
    return whole
