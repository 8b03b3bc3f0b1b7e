"""What may be pruned of the dense model, and how much each channel matters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pydeploy.errors import DataError
from pydeploy.files import replacing
from pydeploy.graph import Graph
from pydeploy.run.artefacts import Artefacts, Files
from pydeploy.run.config import Config, PruneSection
from pydeploy.run.job import Job, model_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pydeploy.tasks.contract import Task


def trace(job: Job, at: Artefacts, here: Path) -> None:
    """``graph.json``: groups and layers of the dense model."""
    from pydeploy.prune.structure.trace import trace as find
    from pydeploy.tasks.evaluate import deployed, example

    find(model_of(job, at.dense_weights), example(job.task), deployed=deployed(job.task)).save(Files(here).graph)


def score(job: Job, at: Artefacts, here: Path) -> None:
    """``scores.npz``: importance of every channel."""
    learned = Files(at.dense_weights.parent).scores
    score_channels(job, model_of(job, at.dense_weights), Graph.load(at.graph), Files(here).scores, learned)


def scores_of(
    config: Config, task: Task, model: nn.Module, graph: Graph, criterion: str, options: Mapping[str, Any]
) -> dict[str, NDArray[np.float32]]:
    """Importance of every channel by `criterion`, on the first training batches of `task`, of several epochs if need be."""
    from pydeploy.prune.criteria.score import score

    data = ((batch.inputs, batch) for batch in first_batches(task, config.prune, config.seed))
    return score(model, graph, criterion, data=data, loss=loss_of(task), seed=config.seed, options=options)


def loss_of(task: Task) -> Callable[[Any, Any], Tensor]:
    """The task's loss of a network's outputs on a batch, as criteria take it."""
    from pydeploy.tasks.evaluate import named, total_loss

    return lambda outputs, batch: total_loss(task, named(task, outputs), batch)


def first_batches(task: Task, settings: PruneSection, seed: int) -> Iterator[Any]:
    """The first training batches of a task, of several epochs if need be."""
    every = (batch for epoch in count() for batch in task.train_batches(epoch, settings.batch_size, seed))
    return islice(every, settings.batches)


def score_channels(job: Job, model: nn.Module, graph: Graph, path: Path, learned: Path) -> None:
    """Write ``{group: (width,) float32}`` as an npz file; `learned` is where training left the scores of criterion dmcp."""
    settings = job.config.prune
    options = settings.options
    if settings.criterion == "dmcp" and "file" not in options and learned.is_file():
        options = {**options, "file": str(learned)}
    scores = (
        scores_of(job.config, job.task, model, graph, settings.criterion, options)
        if job.guest is None
        else job.guest.scored(model, graph)
    )
    write_scores(path, scores)


def write_scores(path: Path, scores: Mapping[str, NDArray[np.float32]]) -> None:
    """A file that `read_scores` reads."""
    with replacing(path) as partial, partial.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **dict(scores))


def read_scores(path: Path) -> dict[str, NDArray[np.float32]]:
    """Scores that `score_channels` wrote."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a file of channel scores ({error}); run the scoring stage again") from None
