"""A short training on a copy of the model, looked into at every step."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from pydeploy.graph import Graph
from pydeploy.prune.criteria.activations import Activations, Seen
from pydeploy.prune.criteria.members import members
from pydeploy.prune.criteria.passes import Batches, Loss, loss_of
from pydeploy.prune.surgery.copying import copied


class Learning:
    """Stochastic gradient descent on a copy of `model`; the model stays as it is."""

    def __init__(self, model: nn.Module, graph: Graph, batches: Batches, loss: Loss, seed: int) -> None:
        self._model, self._graph, self._batches, self._loss, self._seed = model, graph, batches, loss, seed

    def steps(self, count: int, lr: float) -> Iterator[Seen]:
        """What the copy is at each of `count` steps, in training mode, before it learns from that batch; batches come again and again."""
        copy = copied(self._model, {}).train()
        groups = members(copy, self._graph)
        optimizer = torch.optim.SGD([p for p in copy.parameters() if p.requires_grad], lr=lr, momentum=0.9)
        done = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)  # for dropout
            while done < count:
                for number, seen in enumerate(Activations(copy, groups, self._batches)):
                    yield seen
                    optimizer.zero_grad()
                    loss_of(lambda *_, out=seen.output: out, self._loss, (), seen.target, number).backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    done += 1
                    if done == count:
                        break
