"""Criteria of learned widths (DMCP, Guo et al., CVPR 2020): how likely each channel is to be kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pydeploy.errors import ConfigError, DataError, nearest
from pydeploy.graph import Graph
from pydeploy.prune.criteria.members import Groups, Rows
from pydeploy.prune.criteria.passes import GatedLosses
from pydeploy.prune.sparsity.dmcp.chains import Chains, tenths
from pydeploy.prune.sparsity.dmcp.expected import budget_loss, expected_cost
from pydeploy.settings import Number, Positive

ALPHA_LR = (0.5, 0.1)
"""Learning rate of the alphas, cosine from the first to the last step."""


def dmcp(groups: Groups, *, file: str = "") -> dict[str, Rows]:
    """The probabilities that a training with ``sparsity: {kind: dmcp}`` has learned; `file` is the ``scores.npz`` that it left."""
    if not file:
        raise ConfigError("criterion 'dmcp' is learned while the dense model trains: set train.sparsity to {kind: dmcp} and run, or "
                          "name the scores.npz of such a training by its option 'file'; dmcp_lite needs no training")  # fmt: skip
    try:
        with np.load(Path(file), allow_pickle=False) as stored:
            found = {name: stored[name].astype(np.float64) for name in stored.files}
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file} is not a file of channel scores ({error}); name the scores.npz of a training with dmcp"
        ) from None
    for name, group in groups.items():
        if name not in found or found[name].shape != (group.width,):
            raise DataError(f"{file} has no scores of the {group.width} channels of '{name}'{nearest(name, found)}; "
                            "it is of another network")  # fmt: skip
    return {name: found[name] for name in groups}


def dmcp_lite(groups: Groups, graph: Graph, gated_losses: GatedLosses, *, target: Annotated[Number, Field(gt=0, lt=1)] = 0.5,
              steps: Positive = 200, rate: Annotated[Number, Field(gt=0)] = 0.1) -> dict[str, Rows]:  # fmt: skip
    """Widths learned for the weights as they are, which stay: a channel scores the probability that it is kept.

    Channels are ordered by L1 norm; `steps` of gradient descent find the probabilities of widths from the loss of the network with
    each channel weighted by its own, plus `rate` times the distance of the expected multiply-accumulates to `target`, a share of
    dense. Not the paper's method, which trains weights and widths together.
    """
    gated = {name: group for name, group in groups.items() if name in gated_losses.groups}
    widths = tenths(gated, graph.by_name)
    if not widths:
        return {}
    chains = Chains({name: groups[name] for name in widths}, widths)
    chains.to(next(gated_losses.model.parameters()).device)
    optimizer = torch.optim.SGD(chains.parameters(), lr=ALPHA_LR[0], momentum=0.9, nesterov=True)
    done = 0
    while done < steps:
        for loss_at in gated_losses:
            if done == steps:
                break
            part = 0.5 * (1 + np.cos(np.pi * done / steps))
            optimizer.param_groups[0]["lr"] = ALPHA_LR[1] + (ALPHA_LR[0] - ALPHA_LR[1]) * part
            total: Tensor = loss_at(chains.marginals()) + rate * budget_loss(expected_cost(graph, chains), target)
            optimizer.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done += 1
    return {name: values.astype(np.float64) for name, values in chains.scores().items()}
