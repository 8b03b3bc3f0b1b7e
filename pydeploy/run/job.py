"""A job: a config with its task, its target and its calibration samples at hand, everything that it names looked up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydeploy.backends.base import Backend, code_digest, open_backend, reopen
from pydeploy.data.manifest import Manifest, load_manifest
from pydeploy.data.shipped import find
from pydeploy.errors import ConfigError
from pydeploy.files import sha256
from pydeploy.guests.functions import digest
from pydeploy.latency.table.by_precision import other_table, other_target
from pydeploy.run.config import Config
from pydeploy.run.folder import Console
from pydeploy.settings import leaves, open_names

if TYPE_CHECKING:
    from torch import nn

    from pydeploy.tasks.contract import Task
    from pydeploy.tasks.guest import Guest


@dataclass(frozen=True)
class Job:
    """What all stages share."""

    config: Config
    task: Task
    backend: Backend
    console: Console
    manifest: Manifest | None = None
    """The calibration set as it was when the job was opened, None where the config names none."""
    samples: str = ""
    """SHA-256 of its samples."""
    guest: Guest | None = None
    """A program's own network, data and functions (`pd.deploy`), which take the place of what the config would name."""
    shared: dict[str, Any] = field(default_factory=dict)
    """Things that stages of one process share to save time (the distillation teacher with its outputs)."""

    @property
    def seed(self) -> int:
        return self.config.seed

    def settings(self, reads: Iterable[str]) -> dict[str, Any]:
        """The values of the settings in `reads` (keys, or sections with all their keys) as far as results depend on them.

        A file is told by its contents, a data set by its name and contents, ``target`` by all facts of the target.
        """
        found: dict[str, Any] = {}
        for name in reads:
            chosen = {key: value for key, value in self.values.items() if key == name or key.startswith(f"{name}.")}
            assert chosen, f"no setting is called {name}"
            found.update(chosen)
        return found

    @cached_property
    def values(self) -> Mapping[str, Any]:
        """What `settings` chooses from."""
        target, config = self.backend.target().to_json(), self.config
        values = {key: value for key, value in leaves(config).items() if not key.startswith("target.")}
        values |= {f"target.{key}": value for key, value in {**target, **target.pop("facts")}.items()}
        if self.guest is not None:
            return {
                **values,
                "model.name": {"sha256": digest(self.guest.model)},
                "model.trained": True,
                **self.guest.settings(),
            }
        if code := code_digest(config.target.backend):
            values["target.code"] = {"sha256": code}
        for key, kind in open_names(config).items():
            values[key] = kind.stamp(values[key])
        if isinstance(fallback := config.prune.options.get("fallback"), str):
            stamp = open_names(config)["prune.criterion"].stamp(fallback)
            values["prune.options"] = {**config.prune.options, "fallback": stamp}
        values["model.trained"] = not config.trains
        if config.model.cfg is not None:
            values["model.options"] = {**config.model.options, "cfg": {"sha256": sha256(config.model.cfg)}}
        values["task.data"] = {"name": self.task.data, "sha256": self.task.digest()}
        sparsity = config.train.sparsity
        for key, path in {"train.weights": config.train.weights, "model.weights": config.model.weights,
                          "train.sparsity.table": sparsity.table if sparsity else None,
                          "quantize.table": config.quantize.table if config.quantize else None}.items():  # fmt: skip
            if path is not None:
                values[key] = {"sha256": sha256(path)}
        if config.quantize is not None:
            values["quantize.calibration"] = {
                "sha256": sha256(find("calib", config.quantize.calibration)),
                "samples": self.samples,
            }
        return values


def open_job(config: Config, console: Console) -> Job:
    """The task and the backend of `config`; whatever it names is looked up here, before any work starts."""
    from pydeploy.tasks.samples import samples_digest

    if config.track is not None:
        from pydeploy.train.tracking import track_named

        track_named(config.track)
    target = config.target
    backend = open_backend(target.backend, precision=target.precision, batch=target.batch, threads=target.threads,
                           options=target.options)  # fmt: skip
    if config.quantize is not None:
        reopen(other_target(backend))
        if config.quantize.table is not None:
            other_table(config.quantize.table, backend)
    manifest, task = calibration_of(config), open_task(config)
    job = Job(config, task, backend, console, manifest, samples_digest(task, manifest) if manifest is not None else "")
    assert job.values  # reads every file that the config names
    return job


def calibration_of(config: Config) -> Manifest | None:
    """The calibration manifest that a config names."""
    return load_manifest(config.quantize.calibration) if config.quantize is not None else None


def open_task(config: Config) -> Task:
    """The task of a config, its data loaded. Raises `ConfigError` where its settings do not fit."""
    from pydeploy.tasks.named import build_task

    task = config.task
    homes = {"data": "task.data", "model": "model.name", "model_settings": "model.options"}
    for key in task.options:
        if key in homes:
            raise ConfigError(f"task.options: '{key}' is given by {homes[key]}")
    data = {} if task.data is None else {"data": task.data}
    made = build_task(task.name, **data, **task.options)
    training = [("train", config.train.batch_size)] if config.trains else []
    for section, size in (*training, ("prune", config.prune.batch_size), ("finetune", config.finetune.batch_size)):
        if size > made.size("train"):
            raise ConfigError(f"{section}.batch_size is {size}, the data set has {made.size('train')} training samples")
        if section != "prune" and size > made.epoch_size():
            raise ConfigError(f"{section}.batch_size is {size}, an epoch has {made.epoch_size()} samples")
    return made


def fresh_model(job: Job) -> nn.Module:
    """The config's network with weights that follow its seed."""
    import torch

    torch.manual_seed(job.seed)
    return _network(job)


def _network(job: Job) -> nn.Module:
    return build_model(job.config, job.task) if job.guest is None else job.guest.network()


def start_model(job: Job) -> nn.Module:
    """The config's network where its training starts, or trained: with the tensors of ``model.weights``.

    Raises `DataError` and `Mismatch` where they cannot be read or do not fit.
    """
    from pydeploy.models.weights import filled

    model, section = fresh_model(job), job.config.model
    if section.weights is None:
        return model
    model, left_out = filled(model, section.weights, strict=section.strict)
    if left_out:
        job.console.say(f"{section.weights}: what fits is taken; {left_out}")
    return model


def build_model(config: Config, task: Task) -> nn.Module:
    """The config's network, freshly initialized, with as many inputs and classes as the data have."""
    from pydeploy.models.named import named

    return named(config.model.name, config.model.options, task.model_options())


def model_of(job: Job, weights: Path) -> nn.Module:
    """The config's architecture, cut to and filled with the tensors of `weights`."""
    from pydeploy.prune.surgery.save import load

    return load(weights, _network(job))
