"""What is added to the task's loss while training so that channels become small, or widths are learned."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from pydeploy.errors import ConfigError
from pydeploy.graph import Graph
from pydeploy.prune.forward import run_evaluating
from pydeploy.prune.sparsity.channel_costs import Timings
from pydeploy.prune.sparsity.penalties import Sparsity, rescale
from pydeploy.prune.sparsity.settings import SparsitySettings
from pydeploy.prune.structure.trace import trace
from pydeploy.tasks.contract import Task
from pydeploy.tasks.evaluate import deployed, example, named
from pydeploy.train.slimmable import Slimmable

Table = Callable[[Graph], Timings]
"""What a latency table predicts for a graph, such as ``Table.open(path).predictions``."""

Term = Sparsity | Slimmable | None


def term_of(student: nn.Module, task: Task, settings: SparsitySettings | None, table: Table | None) -> Term:
    """The term that the settings ask for; it may rescale `student`, which computes the same then."""
    if settings is not None and settings.kind == "dmcp":
        return _slimmable(student, task, settings, table)
    return _sparsity(student, task, settings, table)


def _slimmable(student: nn.Module, task: Task, settings: SparsitySettings, table: Table | None) -> Slimmable:
    graph = trace(student, example(task), deployed=deployed(task))
    return Slimmable(student, graph, task, settings, table(graph) if table is not None else None)


def _sparsity(
    student: nn.Module, task: Task, settings: SparsitySettings | None, table: Table | None
) -> Sparsity | None:
    """The term on `student`, which is rescaled where the settings say so and what it computes stays the same."""
    if settings is None:
        return None
    inputs = example(task)
    graph = trace(student, inputs, deployed=deployed(task))
    term = Sparsity(student, graph, settings, table(graph) if table is not None else None)
    if settings.rescale != 1:
        before = named(task, run_evaluating(student, inputs))
        rescale(term.groups, settings.rescale)
        after = named(task, run_evaluating(student, inputs))
        if not all(torch.allclose(before[name], after[name], rtol=1e-3, atol=1e-4) for name in before):
            raise ConfigError("sparsity.rescale changes what this network computes: that takes activations that follow a "
                              "factor, as ReLU does, behind every batch norm; set it to 1")  # fmt: skip
    return term
