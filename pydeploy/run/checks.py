"""What a config asks of a network's structure, checked on the untrained network before any work starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pydeploy.errors import ConfigError, DeployError, nearest
from pydeploy.guests import resolve
from pydeploy.guests.patterns import unknown
from pydeploy.latency.probes.design import grid
from pydeploy.onnxfile.load import read_float_model
from pydeploy.onnxfile.prepare import prepare
from pydeploy.quant.placement import excludable, plan
from pydeploy.quant.styles import style_on
from pydeploy.run.artefacts import Files
from pydeploy.run.job import Job, fresh_model, model_of, start_model

if TYPE_CHECKING:
    from torch import Tensor, nn


def check_structure(job: Job) -> None:
    """Raise `ConfigError` for settings that no network of this structure can follow, or weights that do not fit it."""
    from pydeploy.prune.sparsity.penalties import Sparsity
    from pydeploy.prune.structure.trace import trace
    from pydeploy.tasks.evaluate import deployed, example

    config, weights = job.config, job.config.train.weights
    model = model_of(job, weights) if weights else start_model(job)
    check_batch(job, model)
    graph = trace(model, example(job.task), deployed=deployed(job.task))
    if config.trains and config.train.sparsity is not None and weights is None:
        Sparsity(model, graph, config.train.sparsity)
    widths = grid(graph, 2, config.table.align or job.backend.align, config.prune.min_width)
    if not any(len(choices) > 1 for choices in widths.values()):
        widest = max((group.width for group in graph.prunable), default=0)
        raise ConfigError(f"prune.min_width is {config.prune.min_width} and the widest group of channels that may be pruned "
                          f"has {widest}: no width is left to choose; lower prune.min_width or table.align")  # fmt: skip
    if config.quantize is not None and config.quantize.exclude:
        _check_excluded(job, config.quantize.exclude)


def check_batch(job: Job, model: nn.Module) -> Tensor:
    """The loss of two training samples. Raises `ConfigError` or `DataError` where the network, the data and the loss disagree."""
    import torch

    from pydeploy.tasks.evaluate import batches, named, total_loss

    batch = next(batches(job.task, "train", 2, limit=2))
    given = ", ".join(str(list(tensor.shape)) for tensor in batch.inputs)
    with told(f"the network {job.config.model.name} fails on inputs {given}, as the data '{job.task.data}' give them"):
        outputs = model(*batch.inputs)
    found = named(job.task, outputs)
    job.task.check({name: tuple(found[name].shape) for name in job.task.output_names}, batch)
    with told(f"the loss of the task {job.config.task.name} fails"):
        given_loss: object = job.task.loss(found, batch)
    parts = dict(given_loss) if isinstance(given_loss, Mapping) else {"": given_loss}
    for name, loss in parts.items():
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not bool(torch.isfinite(loss.detach())):
            what = (
                f"a tensor {list(loss.shape)}" if isinstance(loss, torch.Tensor) and loss.numel() != 1 else repr(loss)
            )
            part = f"part '{name}' of the" if name else "the"
            raise ConfigError(f"{part} loss of the task {job.config.task.name} must be one finite number, got {what}")
    if not parts:
        raise ConfigError(
            f"the loss of the task {job.config.task.name} is a dict without parts; return a tensor, or named ones"
        )
    return total_loss(job.task, found, batch)


@contextmanager
def told(what: str) -> Iterator[None]:
    """Whatever users' code raises becomes a `ConfigError` that says what failed and where."""
    try:
        yield
    except DeployError:
        raise
    except Exception as error:
        raise ConfigError(f"{what}: {resolve.told(error)}") from error


def _check_excluded(job: Job, exclude: list[str]) -> None:
    from pydeploy.export import export
    from pydeploy.tasks.evaluate import deployed, example

    with TemporaryDirectory(prefix="pydeploy-") as folder:
        onnx = export(fresh_model(job), example(job.task), Files(Path(folder)).onnx, batch=job.backend.batch,
                      input_names=job.task.input_names, output_names=job.task.output_names, deployed=deployed(job.task))  # fmt: skip
        layers = prepare(read_float_model(onnx))
    style = style_on(job.backend.int8_style, job.backend.target())
    known = excludable(layers, style)
    if (name := unknown(exclude, known)) is not None:
        raise ConfigError(f"quantize.exclude: cannot exclude '{name}', no such layer{nearest(name, known)}")
    if not plan(layers, style, exclude=exclude).nodes:
        raise ConfigError("quantize.exclude leaves no layer that could be int8; remove the section 'quantize' instead")
