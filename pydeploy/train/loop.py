"""The training loop: one function, any task, resumable, the same result for the same seed.

Run a script that calls `fit` under ``torchrun --nproc-per-node=N`` to train on N devices: every process takes each N-th
batch, so the effective batch is N times `FitSettings.batch_size`.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import reduce
from itertools import islice
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, convert_to_fp32
from torch import Tensor, nn

from pydeploy.errors import ConfigError, DataError
from pydeploy.plan import Scores
from pydeploy.prune.sparsity.penalties import Sparsity, rescale
from pydeploy.prune.sparsity.settings import SparsitySettings
from pydeploy.tasks.contract import Batch, Task, Tensors
from pydeploy.tasks.evaluate import loss_parts, named
from pydeploy.train import checkpoint, selection
from pydeploy.train.averaging import WeightAverage
from pydeploy.train.distill.logits import LOSSES, Teacher
from pydeploy.train.distill.settings import DistillSettings
from pydeploy.train.memory import keep_freed_memory
from pydeploy.train.optimizer import optimizer_of
from pydeploy.train.precision import bf16_wanted
from pydeploy.train.settings import FitSettings, lr_at
from pydeploy.train.slimmable import Slimmable
from pydeploy.train.terms import Table, Term, term_of
from pydeploy.train.tracking import Tracking, track_named

Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called after every step with (steps done, steps in all, what is told of the step by name: loss, its parts, lr)."""


LATER = ("milestones", "gamma", "accumulate", "ema", "keep", "patience")
"""Settings of a training that earlier versions' checkpoints do not name."""


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One finished epoch: mean training loss, last learning rate, wall time."""

    epoch: int
    loss: float
    lr: float
    seconds: float
    small_scales: float | None = None
    """With a sparsity term: share of the batch norms' scales below 1e-3."""
    parts: dict[str, float] | None = None
    """Means of the loss's parts, where it has several."""
    expected_cost: float | None = None
    """With dmcp: expected multiply-accumulates or latency, as a share of dense."""
    metric: float | None = None
    """Of the network after this epoch on the validation split, where epochs are compared."""


@dataclass(frozen=True, slots=True)
class FitResult:
    """The trained network (evaluation mode, CPU) and how it came about; `resumed_epochs` came from the checkpoint."""

    model: nn.Module
    history: tuple[EpochRecord, ...]
    resumed_epochs: int
    bf16: bool
    scores: Scores | None = None
    """With dmcp: the probability that each channel is kept."""
    widths: Mapping[str, int] | None = None
    """With dmcp: the expected width of each group that has a choice."""

    @property
    def seconds(self) -> float:
        """Wall time of all epochs, those before a resume included."""
        return sum(record.seconds for record in self.history)


def fit(
    model: nn.Module,
    task: Task,
    settings: FitSettings,
    *,
    out: Path,
    seed: int = 0,
    teacher: Teacher | None = None,
    distill: DistillSettings | None = None,
    sparsity: SparsitySettings | None = None,
    table: Table | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    track: str | None = None,
) -> FitResult:
    """A trained copy of `model`; `model` itself is left alone.

    Stochastic gradient descent with Nesterov momentum. After every epoch the state goes to
    ``out/checkpoint.safetensors``; with `resume` training continues from there and ends with the same weights as an
    undisturbed run. With `distill` the student also learns from `teacher`; with `sparsity` channels become small, or widths are
    learned; `table` says what these cost where that is latency. Everything random follows from `seed`. Where epochs are compared,
    the best one's weights lie in ``out/best.safetensors``. `track` names what accelerate writes curves with (``tensorboard``).

    Raises `DataError` for NaN in weights, batches or loss (naming epoch and step), `ConfigError` for settings that do
    not fit the task, `Mismatch` when the checkpoint is from another run.
    """
    keep_freed_memory()
    # Without an accelerator device it must be told so, or it ignores torchrun and trains every process alone.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), log_with=track_named(track), project_dir=out)
    _require_finite(model, "before training")
    if (distill is None) != (teacher is None):
        raise ConfigError("distillation needs both a teacher and 'distill' settings; only one of them was given")
    term = term_of(student := copy.deepcopy(model), task, sparsity, table)
    run = _Run(accelerator, task, settings, seed, teacher, distill, student, term)
    path, best = Path(out) / "checkpoint.safetensors", Path(out) / selection.BEST
    identity = _identity(run, model, distill, sparsity)
    history: list[EpochRecord] = []
    if resume and path.exists():
        history = [EpochRecord(**row) for row in checkpoint.restore(path, run.learned, run.optimizer, identity)]
    resumed = len(history)
    with Tracking(accelerator, track, Path(out), resumed * run.steps) as tracking:
        for epoch in range(resumed, settings.epochs):
            if selection.hopeless([record.metric for record in history], task.metric, settings.patience):
                break
            with _repeatable():
                history.append(run.epoch(epoch, tracking.step(progress)))
            _require_finite(run.student, f"after epoch {epoch}")
            if settings.judges:
                history[-1] = replace(history[-1], metric=run.judged())
                if (
                    accelerator.is_main_process
                    and selection.best_epoch([r.metric for r in history], task.metric) == epoch
                ):
                    selection.save_best(best, run.given.state_dict())
            if accelerator.is_main_process:
                checkpoint.save(path, run.learned, run.optimizer, identity, [asdict(record) for record in history])
            tracking.epoch(history[-1])
            accelerator.wait_for_everyone()
    scores, widths = (run.slim.scores(), run.slim.chains.expected()) if run.slim is not None else (None, None)
    trained = run.finished(best if settings.keep == "best" else None)
    return FitResult(trained, tuple(history), resumed, run.bf16, scores, widths)


def _identity(
    run: _Run, model: nn.Module, distill: DistillSettings | None, sparsity: SparsitySettings | None
) -> dict[str, Any]:
    """What tells one training from another. Settings that came later count where they are not as they were before."""
    later = {
        key
        for key in LATER
        if getattr(run.settings, key) == FitSettings.model_fields[key].get_default(call_default_factory=True)
    }
    numbers = {**run.settings.model_dump(include=set(FitSettings.model_fields) - later), "seed": run.seed,
               "distill": distill.model_dump() if distill else None}  # fmt: skip
    return {"task": type(run.task).__name__.lower(), "settings": numbers, "start": checkpoint.weights_digest(model),
            "teacher": checkpoint.weights_digest(run.teacher.model) if run.teacher else "", "bf16": run.bf16,
            "processes": run.accelerator.num_processes,
            **({"sparsity": sparsity.model_dump(mode="json")} if sparsity else {})}  # fmt: skip


@contextmanager
def _repeatable() -> Iterator[None]:
    """On a GPU, only convolutions that add in the same order every time: a resumed run must end as an undisturbed one."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


class _Run:
    """What stays the same over all steps of one training run."""

    def __init__(
        self, accelerator: Accelerator, task: Task, settings: FitSettings, seed: int, teacher: Teacher | None,
        distill: DistillSettings | None, student: nn.Module, term: Term,
    ) -> None:  # fmt: skip
        self.accelerator, self.task, self.settings, self.seed = accelerator, task, settings, seed
        self.teacher, self.distill = teacher, distill
        self.sparsity = term if isinstance(term, Sparsity) else None
        self.slim = term if isinstance(term, Slimmable) else None
        self.samples = task.epoch_size()
        self.steps = self.samples // (settings.batch_size * accelerator.num_processes)
        if self.steps == 0:
            raise ConfigError(
                f"batch_size {settings.batch_size} on {accelerator.num_processes} process(es) exceeds the "
                f"{self.samples} training samples; lower batch_size"
            )
        self.bf16 = bf16_wanted(settings.amp, accelerator.device)
        # Channels last is the layout of the fast convolution kernels on CPUs and GPUs alike.
        self.student = student.to(accelerator.device).to(memory_format=torch.channels_last).train()
        if teacher is not None:
            teacher.model.to(accelerator.device).to(memory_format=torch.channels_last)
        self.optimizer = optimizer_of(self.student, settings, self.sparsity.without_momentum if self.sparsity else [])
        parts: dict[str, nn.Module] = {}
        self.average = WeightAverage(self.student, settings.ema) if settings.ema else None
        if self.average is not None:
            parts["average"] = self.average
        if self.slim is not None:
            parts["chains"] = alphas = self.slim.chains.to(accelerator.device)
            self.optimizer.add_param_group({"params": [*alphas.parameters()], "weight_decay": 0.0, "alphas": True})
        self.learned = nn.ModuleDict({"network": self.student, **parts}) if parts else self.student
        """What a checkpoint holds."""
        self.network = accelerator.prepare_model(self.student)

    @property
    def given(self) -> nn.Module:
        """The network that training returns, as it is now."""
        return self.student if self.average is None else self.average.mean

    def judged(self) -> float:
        """The metric on the validation split; the same number in all processes."""
        found = (
            selection.judge(self.given, self.task, self.settings.batch_size)
            if self.accelerator.is_main_process
            else 0.0
        )
        return float(broadcast(torch.tensor([found], dtype=torch.float64, device=self.accelerator.device)))

    def epoch(self, epoch: int, progress: Progress | None) -> EpochRecord:
        """Train for one epoch. Everything random follows from (seed, epoch), so an epoch can be repeated exactly."""
        settings, accelerator = self.settings, self.accelerator
        began, totals = time.perf_counter(), dict[str, float]()
        seed = np.random.SeedSequence([self.seed, epoch, accelerator.process_index])
        torch.manual_seed(int(seed.generate_state(1)[0]))  # for dropout and the like
        batches = self.task.train_batches(epoch, settings.batch_size, self.seed)
        mine = islice(batches, accelerator.process_index, None, accelerator.num_processes)
        for step, batch in enumerate(islice(mine, self.steps)):
            done = epoch * self.steps + step
            rate = lr_at(settings, done, self.steps)
            progressed = done / (settings.epochs * self.steps)
            for group in self.optimizer.param_groups:
                group["lr"] = self.slim.alpha_lr(progressed) if self.slim and group.get("alphas") else rate
            there = self.on_device(batch, epoch, step)
            outputs = self.forward(self.network, there)
            parts = self.loss(outputs, there)
            loss = reduce(add, parts.values())
            told = {name: part.item() for name, part in {"loss": loss, **(parts if len(parts) > 1 else {})}.items()}
            if not math.isfinite(value := told["loss"]):
                raise DataError(f"the loss became {value} in epoch {epoch}, step {step} (lr {rate:.4g}); lower lr, "
                                "raise warmup_epochs, or set clip_norm")  # fmt: skip
            first = step - step % settings.accumulate
            accelerator.backward(loss / min(settings.accumulate, self.steps - first))
            if self.slim is not None:
                self.slimmed(self.slim, there, outputs, done, progressed)
            if step + 1 in (first + settings.accumulate, self.steps):
                self.stepped(progressed, rate)
            totals = {name: totals.get(name, 0.0) + part for name, part in told.items()}
            if progress is not None:
                progress(done + 1, settings.epochs * self.steps, {**told, "lr": rate})
        for buffer in self.student.buffers():  # each process has its own running statistics: take the first one's
            buffer.copy_(broadcast(buffer))
        small = self.sparsity.small_scales() if self.sparsity is not None else None
        means = {name: total / self.steps for name, total in totals.items()}
        parts_of = {name: mean for name, mean in means.items() if name != "loss"} or None
        cost = float(self.slim.cost().detach()) if self.slim is not None else None
        return EpochRecord(epoch, means["loss"], rate, time.perf_counter() - began, small, parts_of, cost)

    def stepped(self, progressed: float, rate: float) -> None:
        """One step of the optimizer with the gradients that were gathered."""
        if self.settings.clip_norm:
            self.accelerator.clip_grad_norm_(self.student.parameters(), self.settings.clip_norm)
        if self.sparsity is not None:
            self.sparsity.after_backward(progressed)
        self.optimizer.step()
        if self.sparsity is not None:
            self.sparsity.after_step(progressed, rate)
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.student)

    def slimmed(self, slim: Slimmable, batch: Batch, outputs: Tensors, done: int, progress: float) -> None:
        """Add what narrower networks learn on this batch and, in the second half, what the alphas do."""
        generator = np.random.default_rng([self.seed, done])  # the same widths in all processes
        slim.narrower(self.network, self.forward, batch, outputs, generator, progress, self.accelerator.backward)
        if progress >= 0.5:
            slim.learn_alphas(self.network, self.forward, batch,
                              lambda gradient: self.accelerator.reduce(gradient, "mean"))  # fmt: skip

    def on_device(self, batch: Batch, epoch: int, step: int) -> Batch:
        """The batch where the network is, in its memory format; refuses NaN and infinity."""
        for number, value in enumerate(batch.inputs):
            if not torch.isfinite(value).all():
                raise DataError(f"input {number} of the batch at epoch {epoch}, step {step} holds NaN or infinity; "
                                "check the data set for broken samples")  # fmt: skip
        moved = batch.to(self.accelerator.device)
        epochs = self.settings.epochs
        inputs = tuple(_channels_last(value) for value in moved.inputs)
        return Batch(inputs, moved.target, epoch / epochs if epochs > 1 else 0.5)

    def forward(self, network: Callable[..., Any], batch: Batch) -> Tensors:
        """The network's outputs by name in float32, computed in the run's precision."""
        with torch.autocast(self.accelerator.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            outputs = network(*batch.inputs)
        return named(self.task, convert_to_fp32(outputs), training=True)

    def loss(self, outputs: Tensors, batch: Batch) -> dict[str, Tensor]:
        """The parts of the task's loss, with a teacher mixed with the distillation loss as a further part."""
        parts = loss_parts(self.task, outputs, batch)
        distill = self.distill
        if distill is None or self.teacher is None:
            return parts
        guide = {
            name: value for name, value in self.teacher(batch, self.forward).items() if name in self.task.output_names
        }
        mixed = {name: (1 - distill.alpha) * part for name, part in parts.items()}
        exported = {name: outputs[name] for name in self.task.output_names}
        return {**mixed, "distill": distill.alpha * LOSSES[distill.loss](self.task, exported, guide, distill)}

    def finished(self, best: Path | None) -> nn.Module:
        """The trained network as a plain module on the CPU; with `best`, of the best epoch."""
        state = selection.load_best(best) if best is not None else self.given.state_dict()
        if best is not None or self.average is not None:
            self.student.load_state_dict(state)
        if self.sparsity is not None and self.sparsity.settings.rescale != 1:
            rescale(self.sparsity.groups, 1 / self.sparsity.settings.rescale)
        network: nn.Module = self.accelerator.unwrap_model(self.network, keep_fp32_wrapper=False)
        return network.to("cpu").to(memory_format=torch.contiguous_format).eval()


def _channels_last(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value


def _require_finite(model: nn.Module, when: str) -> None:
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise DataError(f"weights '{name}' hold NaN or infinity {when}; start from another checkpoint, or lower lr")
