"""Training at many widths at once, while alphas learn which ones suit a budget (DMCP, Guo et al., CVPR 2020).

Every step is a sandwich: the dense network learns from the task, the narrowest and two random ones from the dense one's outputs.
In the second half of the training the alphas learn as well, once a step, from the dense network with each channel weighted by
the probability that it is kept, and from the distance of the expected cost to the target.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pydeploy.errors import ConfigError
from pydeploy.graph import Graph
from pydeploy.prune.criteria.members import members
from pydeploy.prune.sparsity.channel_costs import Timings
from pydeploy.prune.sparsity.dmcp.chains import Chains, tenths
from pydeploy.prune.sparsity.dmcp.expected import budget_loss, expected_cost
from pydeploy.prune.sparsity.dmcp.gates import Gates, statistics_kept
from pydeploy.prune.sparsity.settings import SparsitySettings
from pydeploy.tasks.contract import Batch, Task, Tensors
from pydeploy.tasks.evaluate import total_loss

Forward = Callable[[Any, Batch], Tensors]
"""Outputs by name of a network, or a function like one, for a batch."""
RANDOM = 2
"""Random widths of a step."""
ALPHA_LR = (0.5, 0.1)
"""Learning rate of the alphas where they begin to learn, and at the end (as published)."""


class Slimmable:
    """The chains of the prunable groups of `graph`, a trace of `model`, and what they add to a training step."""

    def __init__(
        self, model: nn.Module, graph: Graph, task: Task, settings: SparsitySettings, timings: Timings | None
    ) -> None:
        chosen = {g.name for g in graph.prunable if settings.layers == "shortcut" or g.name not in graph.shortcuts}
        self.gates = Gates(model, graph)
        groups = {
            name: group for name, group in members(model, graph).items() if name in chosen and name in self.gates.groups
        }
        if timings is None:
            widths = tenths(groups, graph.by_name)
        else:
            offered = timings.widths
            widths = {name: tuple(sorted(offered[name])) for name in groups if len(offered.get(name, ())) > 1}
        if not widths:
            raise ConfigError(
                "sparsity dmcp chooses widths of groups that may be cut; the model has none of more than one width"
            )
        self.model, self.graph, self.task, self.settings, self.timings = model, graph, task, settings, timings
        self.chains = Chains({name: groups[name] for name in widths}, widths)

    def alpha_lr(self, progress: float) -> float:
        """Cosine over the second half of the training."""
        first, last = ALPHA_LR
        return last + (first - last) * 0.5 * (1 + math.cos(math.pi * min(max(2 * progress - 1, 0.0), 1.0)))

    def narrower(self, network: nn.Module, forward: Forward, batch: Batch, outputs: Tensors, generator: np.random.Generator,
                 progress: float, backward: Callable[[Tensor], Any]) -> None:  # fmt: skip
        """Add the gradients of the narrowest and `RANDOM` other networks, taught by the dense one's `outputs` on `batch`."""
        names = self.task.output_names
        taught = {name: outputs[name].detach() for name in names}
        uniform = 1.0 if progress < 0.5 else math.exp(1 - 2 * progress)
        draws = [self.chains.drawn(generator, by_alpha=generator.random() >= uniform) for _ in range(RANDOM)]
        for widths in [self.chains.narrowest(), *draws]:
            with statistics_kept(self.model):
                found = forward(self.gates.run(network, self.chains.kept(widths)), batch)
                backward(self.task.distill_loss({name: found[name] for name in names}, taught, 1.0))

    def learn_alphas(
        self, network: nn.Module, forward: Forward, batch: Batch, mean: Callable[[Tensor], Tensor]
    ) -> None:
        """Leave gradients at the alphas; `mean` is that over all processes."""
        alphas = list(self.chains.alphas)
        with statistics_kept(self.model):
            weighted = self.gates.run(network, self.chains.marginals(), frozen=True)
            loss = total_loss(self.task, forward(weighted, batch), batch)
        loss = loss + self.settings.rate * budget_loss(self.cost(), self.settings.target)
        for alpha, gradient in zip(alphas, torch.autograd.grad(loss, alphas), strict=True):
            alpha.grad = mean(gradient)

    def cost(self) -> Tensor:
        """The expected cost as a share of dense."""
        return expected_cost(self.graph, self.chains, self.timings)

    def scores(self) -> dict[str, NDArray[np.float32]]:
        """Of every prunable group: the probability that each channel is kept; 1 where a group has no chain."""
        whole = {group.name: np.ones(group.width, np.float32) for group in self.graph.prunable}
        return whole | self.chains.scores()
