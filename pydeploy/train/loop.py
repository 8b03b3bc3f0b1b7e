"""The training loop: one function, any task, resumable, the same result for the same seed.

Run a script that calls `fit` under ``torchrun --nproc-per-node=N`` to train on N devices: every process takes each N-th
batch, so the effective batch is N times `FitSettings.batch_size`.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
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
from torch.nn.modules.conv import _ConvNd

from pydeploy.errors import ConfigError, DataError
from pydeploy.graph import Graph
from pydeploy.plan import Scores
from pydeploy.prune.forward import run_evaluating
from pydeploy.prune.sparsity.channel_costs import Timings
from pydeploy.prune.sparsity.penalties import Sparsity, rescale
from pydeploy.prune.sparsity.settings import SparsitySettings
from pydeploy.prune.structure.trace import trace
from pydeploy.tasks.contract import Batch, Task, Tensors
from pydeploy.tasks.evaluate import example, loss_parts, named
from pydeploy.train import checkpoint
from pydeploy.train.distill.logits import LOSSES, Teacher
from pydeploy.train.distill.settings import DistillSettings
from pydeploy.train.memory import keep_freed_memory
from pydeploy.train.precision import bf16_wanted
from pydeploy.train.settings import FitSettings, lr_at
from pydeploy.train.slimmable import Slimmable

Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called after every step with (steps done, steps in all, what is told of the step by name: loss, its parts, lr)."""
Table = Callable[[Graph], Timings]
"""What a latency table predicts for a graph, such as ``Table.open(path).predictions``."""


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
) -> FitResult:
    """A trained copy of `model`; `model` itself is left alone.

    Stochastic gradient descent with Nesterov momentum. After every epoch the state goes to
    ``out/checkpoint.safetensors``; with `resume` training continues from there and ends with the same weights as an
    undisturbed run. With `distill` the student also learns from `teacher`; with `sparsity` channels become small, or widths are
    learned; `table` says what these cost where that is latency. Everything random follows from `seed`.

    Raises `DataError` for NaN in weights, batches or loss (naming epoch and step), `ConfigError` for settings that do
    not fit the task, `Mismatch` when the checkpoint is from another run.
    """
    keep_freed_memory()
    # Without an accelerator device it must be told so, or it ignores torchrun and trains every process alone.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    _require_finite(model, "before training")
    if (distill is None) != (teacher is None):
        raise ConfigError("distillation needs both a teacher and 'distill' settings; only one of them was given")
    student = copy.deepcopy(model)
    if sparsity is not None and sparsity.kind == "dmcp":
        term: _Term = _slimmable(student, task, sparsity, table)
    else:
        term = _sparsity(student, task, sparsity, table)
    run = _Run(accelerator, task, settings, seed, teacher, distill, student, term)
    path = Path(out) / "checkpoint.safetensors"
    numbers = {**settings.model_dump(include=set(FitSettings.model_fields)), "seed": seed,
               "distill": distill.model_dump() if distill else None}  # fmt: skip
    identity = {"task": type(task).__name__.lower(), "settings": numbers, "start": checkpoint.weights_digest(model),
                "teacher": checkpoint.weights_digest(teacher.model) if teacher else "", "bf16": run.bf16,
                "processes": accelerator.num_processes,
                **({"sparsity": sparsity.model_dump(mode="json")} if sparsity else {})}  # fmt: skip
    history: list[EpochRecord] = []
    if resume and path.exists():
        history = [EpochRecord(**row) for row in checkpoint.restore(path, run.learned, run.optimizer, identity)]
    resumed = len(history)
    for epoch in range(resumed, settings.epochs):
        with _repeatable():
            history.append(run.epoch(epoch, progress))
        _require_finite(run.student, f"after epoch {epoch}")
        if accelerator.is_main_process:
            checkpoint.save(path, run.learned, run.optimizer, identity, [asdict(record) for record in history])
        accelerator.wait_for_everyone()
    scores, widths = (run.slim.scores(), run.slim.chains.expected()) if run.slim is not None else (None, None)
    return FitResult(run.finished(), tuple(history), resumed, run.bf16, scores, widths)


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
        distill: DistillSettings | None, student: nn.Module, term: _Term,
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
        self.optimizer = _optimizer(self.student, settings, self.sparsity.without_momentum if self.sparsity else [])
        self.learned: nn.Module = self.student
        """What a checkpoint holds."""
        if self.slim is not None:
            alphas = self.slim.chains.to(accelerator.device)
            self.learned = nn.ModuleDict({"network": self.student, "chains": alphas})
            self.optimizer.add_param_group({"params": [*alphas.parameters()], "weight_decay": 0.0, "alphas": True})
        self.network = accelerator.prepare_model(self.student)

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
            accelerator.backward(loss)
            if self.slim is not None:
                self.slimmed(self.slim, there, outputs, done, progressed)
            if settings.clip_norm:
                accelerator.clip_grad_norm_(self.student.parameters(), settings.clip_norm)
            if self.sparsity is not None:
                self.sparsity.after_backward(progressed)
            self.optimizer.step()
            if self.sparsity is not None:
                self.sparsity.after_step(progressed, rate)
            self.optimizer.zero_grad()
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
        guide = self.teacher(batch, self.forward)
        mixed = {name: (1 - distill.alpha) * part for name, part in parts.items()}
        exported = {name: outputs[name] for name in self.task.output_names}
        return {**mixed, "distill": distill.alpha * LOSSES[distill.loss](self.task, exported, guide, distill)}

    def finished(self) -> nn.Module:
        """The trained network as a plain module on the CPU."""
        if self.sparsity is not None and self.sparsity.settings.rescale != 1:
            rescale(self.sparsity.groups, 1 / self.sparsity.settings.rescale)
        network: nn.Module = self.accelerator.unwrap_model(self.network, keep_fp32_wrapper=False)
        return network.to("cpu").to(memory_format=torch.contiguous_format).eval()


_Term = Sparsity | Slimmable | None


def _slimmable(student: nn.Module, task: Task, settings: SparsitySettings, table: Table | None) -> Slimmable:
    graph = trace(student, example(task))
    return Slimmable(student, graph, task, settings, table(graph) if table is not None else None)


def _sparsity(
    student: nn.Module, task: Task, settings: SparsitySettings | None, table: Table | None
) -> Sparsity | None:
    """The term on `student`, which is rescaled where the settings say so and what it computes stays the same."""
    if settings is None:
        return None
    inputs = example(task)
    graph = trace(student, inputs)
    term = Sparsity(student, graph, settings, table(graph) if table is not None else None)
    if settings.rescale != 1:
        before = named(task, run_evaluating(student, inputs))
        rescale(term.groups, settings.rescale)
        after = named(task, run_evaluating(student, inputs))
        if not all(torch.allclose(before[name], after[name], rtol=1e-3, atol=1e-4) for name in before):
            raise ConfigError("sparsity.rescale changes what this network computes: that takes activations that follow a "
                              "factor, as ReLU does, behind every batch norm; set it to 1")  # fmt: skip
    return term


def _optimizer(
    model: nn.Module, settings: FitSettings, without_momentum: Sequence[nn.Parameter]
) -> torch.optim.Optimizer:
    """SGD whose weight decay leaves biases and normalization alone: shrinking those only costs accuracy."""
    plain = {id(parameter) for parameter in without_momentum}
    vectors = _vectors(model)
    trained = [p for p in model.parameters() if p.requires_grad and id(p) not in plain]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p not in vectors], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p in vectors], "weight_decay": 0.0},
    ]
    if without_momentum:
        groups.append({"params": list(without_momentum), "weight_decay": 0.0, "momentum": 0.0, "nesterov": False})
    # One kernel for all steps of the update: on a CPU the plain form costs as much as several layers.
    return torch.optim.SGD(
        groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0, fused=True
    )


def _vectors(model: nn.Module) -> set[nn.Parameter]:
    """Biases, and scales and shifts of norms: one number a channel, perhaps with axes of length 1 around; no layer's weights."""
    weights = {p for m in model.modules() if isinstance(m, nn.Linear | _ConvNd) for p in (m.weight,)}
    return {p for p in model.parameters() if p.ndim <= 1 or (p not in weights and p.numel() == max(p.shape))}


def _channels_last(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value


def _require_finite(model: nn.Module, when: str) -> None:
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise DataError(f"weights '{name}' hold NaN or infinity {when}; start from another checkpoint, or lower lr")
