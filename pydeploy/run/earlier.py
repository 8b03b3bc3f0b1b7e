"""Run directories of versions in which a stamp was one hash over sections of the config, and did not cover all that is read.

Such a result stays where its old stamp is the one that this config would get, and what that stamp left out is seen to be the
same by other means: weights by their tensors, calibration samples by the hash among the ranges, settings by the
``config.json`` of the run that made it. Otherwise the stage is done again, and says why.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydeploy.errors import DeployError
from pydeploy.files import read_json, sha256
from pydeploy.graph import Graph
from pydeploy.latency.probes.design import grid
from pydeploy.latency.table.table import Table
from pydeploy.run.artefacts import Artefacts, Files
from pydeploy.run.config import load
from pydeploy.run.folder import Inputs, differences
from pydeploy.run.job import Job, model_of
from pydeploy.run.stages.comparison import wanted
from pydeploy.run.stages.reduced_precision import half_backend
from pydeploy.settings import leaves

FIT = ("epochs", "batch_size", "lr", "momentum", "weight_decay", "warmup_epochs", "schedule", "clip_norm", "amp")
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "task": ("name", "data", "options"),
    "model": ("name", "options"),
    "train": (*FIT, "weights"),
    "table": ("points", "align", "rounds", "runs"),
    "prune": ("criterion", "batches", "batch_size", "budget", "budget_us", "headroom", "rounds", "min_width"),
    "finetune": FIT,
    "quantize": ("observer", "calibration", "exclude"),
}
"""Keys of the sections as they were hashed."""
CONTENTS = ("train.weights", "quantize.calibration", "quantize.table")
"""Files, whose contents are looked at."""


FIT_LATER = ("milestones", "gamma", "accumulate", "ema", "keep", "patience")
LATER = ("model.strict", "model.weights", "prune.options", "train.sparsity",
         *(f"{section}.{key}" for section in ("train", "finetune") for key in FIT_LATER))  # fmt: skip
"""Settings that those versions did not have: they did what is the default now."""


@dataclass(frozen=True, slots=True)
class OldStamp:
    """What an old stamp was made of: a hash, and the settings that it and those before it covered."""

    digest: str
    covers: frozenset[str]
    after: tuple[str, ...]


class Earlier:
    """Judges the stages of the run directories `roots` as `job` would make them."""

    def __init__(self, job: Job, roots: Iterable[Path]) -> None:
        self.job, self.stamps = job, _old_stamps(job)
        self.configs = {root: _last_config(root) for root in roots}

    def recognizes(self, known: Mapping[str, Any]) -> bool:
        """Whether the notes are an earlier version's."""
        return "settings" not in known

    def objections(self, folder: Path, known: Mapping[str, Any], inputs: Inputs, kept: Sequence[str]) -> list[str]:
        """Why the work in `folder` may be other than `inputs` ask for."""
        old = self.stamps.get(folder.name)
        config, begun = self.configs.get(folder.parent, ({}, math.inf))
        now = {key: value for key, value in leaves(self.job.config).items() if key in inputs.settings and key in config}
        changed = {key: differences(config, {key: value}, {}) for key, value in now.items() if key not in CONTENTS}
        again = [f"{other} is done again" for other in (old.after if old else ()) if other not in kept]
        if old is None or known.get("stamp") != old.digest:
            texts = [text for texts in changed.values() for text in texts] + again
            return texts or ["what it reads has changed since an earlier version made it"]
        if again:
            return again
        left_out = [key for key in changed if key not in old.covers and (changed[key] or key not in LATER)]
        if left_out == ["prune.min_width"] and folder.name == "05_table":
            left_out = [] if self._same_widths(folder) else left_out
        objections = [text for key in left_out for text in changed[key]]
        if left_out and not objections and _made(folder) < begun:
            objections = [f"an earlier version made it and did not note {', '.join(left_out)}"]
        return objections + self._other_contents(folder, inputs)

    def _same_widths(self, folder: Path) -> bool:
        """Whether the latency table holds the widths that this config asks for."""
        graph, settings = Graph.load(Artefacts(folder.parent).graph), self.job.config.table
        align = settings.align or self.job.backend.align
        asked = grid(graph, settings.points, align, self.job.config.prune.min_width)
        measured = [network.widths for network in Table.open(Files(folder).table).networks(graph)]
        return all({network[group] for network in measured} == set(widths) for group, widths in asked.items())

    def _other_contents(self, folder: Path, inputs: Inputs) -> list[str]:
        """Files that the config names and whose contents are not those that the work in `folder` was made from."""
        found = []
        weights, ranges = Files(folder).weights, Files(folder).ranges
        if inputs.settings.get("train.weights") is not None and weights.is_file() and not self._same_weights(weights):
            found.append("train.weights is another file")
        if "quantize.calibration" in inputs.settings and ranges.is_file() and not self._same_samples(ranges):
            found.append("it was calibrated on other samples than quantize.calibration names")
        return found

    def _same_weights(self, made: Path) -> bool:
        from pydeploy.train.checkpoint import weights_digest

        asked = self.job.config.train.weights
        assert asked is not None
        return weights_digest(model_of(self.job, asked)) == weights_digest(model_of(self.job, made))

    def _same_samples(self, ranges: Path) -> bool:
        from pydeploy.quant.counts import hash_of_samples
        from pydeploy.tasks.samples import calibration_batches

        manifest = self.job.manifest
        assert manifest is not None
        return bool(read_json(ranges).get("data") == hash_of_samples(calibration_batches(self.job.task, manifest)))


def _last_config(root: Path) -> tuple[dict[str, Any], float]:
    """Settings by dotted name of the last run in `root`, and when it began; nothing where there was none."""
    path = Artefacts(root).config
    try:
        return leaves(load(path, folder=Path())), path.stat().st_mtime
    except (DeployError, OSError):
        return {}, math.inf


def _made(folder: Path) -> float:
    """When the folder's notes were written."""
    notes = (Files(folder).stamp, Files(folder).started)
    return max(path.stat().st_mtime for path in notes if path.is_file())


def _old_stamps(job: Job) -> dict[str, OldStamp]:
    """The stamps of all stages, as they were computed."""
    config, int8 = job.config, job.backend.precision == "int8"
    stamps: dict[str, OldStamp] = {}

    def stage(name: str, inputs: Mapping[str, Any], covers: Iterable[str], *after: str) -> None:
        text = json.dumps({"inputs": inputs, "after": {other: stamps[other].digest for other in after}}, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        before = frozenset().union(*(stamps[other].covers for other in after))
        stamps[name] = OldStamp(digest, before | frozenset(covers), after)

    learned = {"seed": config.seed, **{name: _section(job, name) for name in ("task", "model", "train")}}
    target: dict[str, Any] = {"target": job.backend.target().to_json()}
    quantize = _section(job, "quantize") if config.quantize is not None else {}
    of_target = list(job.settings(["target"]))
    if int8:
        target["quantize"] = quantize
        of_target += _keys("quantize")
    stage("01_train", learned, ["seed", *_keys("task"), *_keys("model"), *_keys("train")])
    stage("02_graph", {}, [], "01_train")
    scoring = {key: _section(job, "prune")[key] for key in ("criterion", "batches", "batch_size")}
    stage("03_scores", scoring, [f"prune.{key}" for key in scoring], "02_graph")
    stage("04_dense", target, of_target, "01_train")
    stage("05_table", _section(job, "table"), _keys("table"), "02_graph", "04_dense")
    stage("06_search", _section(job, "prune"), _keys("prune"), "03_scores", "05_table")
    stage("07_finetune", _section(job, "finetune"), [*_keys("finetune"), *_distill(job)], "06_search")
    stage("08_pruned", {}, [], "07_finetune")
    engines = ["04_dense", "08_pruned"]
    if config.quantize is not None:
        other = "09_unquantized" if int8 else "09_quantized"
        stage(other, quantize, _keys("quantize"), "08_pruned")
        limits = {**quantize, "limit": config.compare.limit}
        if config.quantize.table is not None:
            limits["table"] = sha256(config.quantize.table)
        stage("09_mixed", limits, [*_keys("quantize"), "quantize.table", "compare.limit"], "04_dense", other)
        engines += [other, "09_mixed"]
        if (half := half_backend(job)) is not None:
            stage("09_half", {"target": half.target().to_json()}, of_target, "08_pruned")
            engines.append("09_half")
    for point in wanted(config):
        engines.append(f"10_{point.slug}")
        stage(engines[-1], _section(job, "finetune"), [*_keys("finetune"), *_distill(job)], "03_scores", "05_table")
    stage("11_profile", {}, [], *engines)
    return stamps


def _keys(section: str) -> list[str]:
    return [f"{section}.{key}" for key in SECTIONS[section]]


def _distill(job: Job) -> list[str]:
    return [key for key in leaves(job.config) if key.startswith("finetune.distill")]


def _section(job: Job, name: str) -> dict[str, Any]:
    """A section as it was dumped: training and fine-tuning both had weights and distillation."""
    data: dict[str, Any] = getattr(job.config, name).model_dump(mode="json")
    if name == "task":
        data["data"] = job.task.data  # which was written where it is the default
    found = {key: data[key] for key in SECTIONS[name]}
    if name == "train":
        return {**found, "distill": None}
    return {**found, "weights": None, "distill": data["distill"]} if name == "finetune" else found
