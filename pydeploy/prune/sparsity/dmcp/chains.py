"""Widths as Markov chains (Guo et al., CVPR 2020): the next channels of a group are kept with a probability, if those before are.

A chain has a few widths from the narrowest to the dense one, and for each step up a learned alpha with the probability
``sigmoid(alpha)``. Channels are ordered by the size of their filters at the start; the first ones of the order stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pydeploy.graph import Group

if TYPE_CHECKING:  # criteria import this module
    from pydeploy.prune.criteria.members import Groups

STEPS = 10
"""Widths of a chain where no table gives them: tenths of the dense width."""


class Chains(nn.Module):
    """The alphas of all groups, and what follows from them."""

    def __init__(self, groups: Groups, widths: Mapping[str, Sequence[int]]) -> None:
        super().__init__()
        self.widths = {name: tuple(widths[name]) for name in groups}
        """Possible widths of each group, ascending, the dense one last."""
        self.order = {name: torch.from_numpy(_largest_first(groups, name)) for name in groups}
        self.alphas = nn.ParameterList(torch.zeros(len(states) - 1) for states in self.widths.values())

    def reached(self) -> dict[str, Tensor]:
        """Probability that a group is at least as wide as each of its widths; the first is 1."""
        ones = {name: alpha.new_ones(1) for name, alpha in zip(self.widths, self.alphas, strict=True)}
        return {name: torch.cat([ones[name], torch.sigmoid(alpha).cumprod(0)])
                for name, alpha in zip(self.widths, self.alphas, strict=True)}  # fmt: skip

    def probabilities(self) -> dict[str, Tensor]:
        """Probability of each width of each group."""
        return {
            name: reached - torch.cat([reached[1:], reached.new_zeros(1)]) for name, reached in self.reached().items()
        }

    def marginals(self) -> dict[str, Tensor]:
        """Probability that each channel is kept, ``(width,)``; their sum is the expected width."""
        found = {}
        for name, reached in self.reached().items():
            sizes = torch.tensor(np.diff(self.widths[name], prepend=0), device=reached.device)
            found[name] = _placed(reached.repeat_interleave(sizes), self.order[name])
        return found

    def kept(self, widths: Mapping[str, int]) -> dict[str, Tensor]:
        """1 for each channel that stays at `widths`, else 0."""
        device = next(iter(self.alphas)).device
        return {name: _placed((torch.arange(len(order), device=device) < widths[name]).float(), order)
                for name, order in self.order.items()}  # fmt: skip

    def narrowest(self) -> dict[str, int]:
        return {name: states[0] for name, states in self.widths.items()}

    def drawn(self, generator: np.random.Generator, *, by_alpha: bool) -> dict[str, int]:
        """Random widths: each step of a chain by its probability, or all widths alike."""
        found = {}
        for name, alpha in zip(self.widths, self.alphas, strict=True):
            states = self.widths[name]
            stays = generator.random(len(states) - 1) < torch.sigmoid(alpha).detach().cpu().numpy()
            steps = int(np.cumprod(stays).sum()) if by_alpha else int(generator.integers(len(states)))
            found[name] = states[steps]
        return found

    def expected(self) -> dict[str, int]:
        """The expected width of each group, rounded (*expected sampling*)."""
        return {name: max(1, round(float(values.detach().sum()))) for name, values in self.marginals().items()}

    def scores(self) -> dict[str, NDArray[np.float32]]:
        """The marginals as channel scores; of channels of one step the earlier in the order is a hair higher."""
        found = {}
        for name, values in self.marginals().items():
            rank = torch.empty(len(values))
            rank[self.order[name]] = torch.arange(float(len(values)))
            found[name] = (values.detach().cpu() - 1e-7 * rank).numpy()
        return found


def tenths(groups: Groups, by_name: Mapping[str, Group]) -> dict[str, tuple[int, ...]]:
    """For each group the widths from a tenth to the dense one, multiples of what the group takes; none for one of a single width."""
    found = {}
    for name, group in groups.items():
        step, least = by_name[name].align, max(by_name[name].min_width, 1)
        widths = {max(least, -(-group.width * k // (STEPS * step)) * step) for k in range(1, STEPS)}
        states = tuple(sorted({w for w in widths if w < group.width} | {group.width}))
        if len(states) > 1:
            found[name] = states
    return found


def _largest_first(groups: Groups, name: str) -> NDArray[np.int64]:
    size = np.mean([member.sums(1) / max(member.sums(1).mean(), 1e-30) for member in groups[name].filters], axis=0)
    return np.argsort(-size, kind="stable")


def _placed(by_rank: Tensor, order: Tensor) -> Tensor:
    """Values of the channels from those of the ranks."""
    return torch.zeros_like(by_rank).index_copy(0, order.to(by_rank.device), by_rank)
