"""Channels of masked networks that nothing makes or nothing reads: they are really cut."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pydeploy.graph import Graph
from pydeploy.plan import Plan, plan_from_widths
from pydeploy.prune.criteria.members import Members, members
from pydeploy.prune.forward import Inputs
from pydeploy.prune.surgery.absorb import channel_means
from pydeploy.prune.surgery.apply import apply
from pydeploy.prune.surgery.masks import Masks


def without_empty(model: nn.Module, graph: Graph, example: Tensor | Inputs) -> tuple[nn.Module, Plan] | None:
    """`model` without its empty channels, and the plan of that cut; None where there are none.

    `graph` is a trace of `model`, whose zeros are in its weights. A channel is empty if all filters that make it are zero, then it
    is a constant, which goes into the layers that read it (exact but for the borders of padded layers); or if all weights that read
    it are. A group keeps its least width, and multiples of what it takes.
    """
    full = {name: _full(group) for name, group in members(model, graph).items()}
    widths = {}
    for name, found in full.items():
        group = graph.by_name[name]
        least = max(int(found.sum()), group.min_width, 1)
        widths[name] = min(-(-least // group.align) * group.align, group.width)
    if all(widths[name] == graph.by_name[name].width for name in widths):
        return None
    scores = {name: found.float().numpy() for name, found in full.items()}
    plan = plan_from_widths(graph, scores, widths, method="empty channels")
    return apply(model, graph, plan, means=channel_means(model, graph, [example])), plan


def _full(group: Members) -> Tensor:
    """Whether each channel has a weight that makes it and one that reads it, where the group has any."""
    made = torch.stack([member.values().cpu().ne(0).any(dim=1) for member in group.filters]).any(dim=0)
    if not group.inputs:
        return made
    return made & torch.stack([member.values().cpu().ne(0).any(dim=1) for member in group.inputs]).any(dim=0)


def zeros_of(model: nn.Module, graph: Graph) -> Masks:
    """Masks of the weights of layers that hold zeros: what is zero now stays zero under them."""
    tensors = model.state_dict()
    found = {op.weight: tensors[op.weight] != 0 for op in graph.ops if op.weight in tensors}
    return {name: mask for name, mask in found.items() if not bool(mask.all())}
