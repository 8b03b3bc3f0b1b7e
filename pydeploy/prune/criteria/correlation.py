"""Criteria of what channels have in common: the more of a channel others show as well, the earlier it goes."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from pydeploy.errors import ConfigError, nearest
from pydeploy.prune.criteria.activations import Activations
from pydeploy.prune.criteria.learning import Learning
from pydeploy.prune.criteria.magnitude import normalized
from pydeploy.prune.criteria.members import Groups, Rows
from pydeploy.settings import Number, Share, Whole

Part = Annotated[float, Field(ge=0, le=1)]
GRID = 8
"""Positions along each axis that maps are averaged to for `l1_corr`."""


def l1_corr(groups: Groups, activations: Activations, *, penalty: Part = 0.5, redundancy: Literal["mean", "max"] = "mean",
            greedy: bool = True) -> dict[str, Rows]:  # fmt: skip
    """L1 norm of the filters, over the layer's largest, times ``1 - penalty * redundancy``.

    The redundancy of a channel is the mean (or largest) abs of Pearson's correlation with the others' activations, averaged to
    8 positions an axis. `greedy`: a channel that went no longer makes others redundant, so that of two twins one goes.
    Constant channels score 0.
    """
    moments: dict[str, list[Tensor]] = {}
    for seen in activations:
        for name, maps in seen.maps.items():
            added = _moments(maps)
            moments[name] = [a + b for a, b in zip(moments[name], added, strict=True)] if name in moments else added
    scores = {}
    for name, found in moments.items():
        correlation, alive = _correlation(*found)
        size = np.mean([normalized(m.sums(1), "max") for m in groups[name].filters], axis=0) * alive
        scores[name] = _removed(size, correlation, penalty, redundancy) if greedy else (
            size * (1 - penalty * _redundancy(correlation, np.ones(len(size), bool), redundancy)))  # fmt: skip
    return scores


def _moments(maps: Sequence[Tensor]) -> list[Tensor]:
    """Number of observations, sums of the channels and of their products, in float64."""
    rows = [_small(m).double().movedim(1, 0).flatten(1) for m in maps]
    return [torch.tensor(float(sum(r.shape[1] for r in rows))), torch.stack([r.sum(dim=1) for r in rows]).sum(dim=0).cpu(),
            torch.stack([r @ r.T for r in rows]).sum(dim=0).cpu()]  # fmt: skip


def _small(values: Tensor) -> Tensor:
    """Maps averaged to a grid, ``(samples, width, positions...)``."""
    sizes = [min(size, GRID) for size in values.shape[2:]]
    return torch.nn.functional.interpolate(values, size=sizes, mode="area") if len(sizes) in (1, 2, 3) else values


def _correlation(count: Tensor, sums: Tensor, products: Tensor) -> tuple[Rows, Rows]:
    """Abs of Pearson's correlation with zeros on the diagonal, and 1 for each channel that is not constant."""
    mean = sums / count
    covariance = (products / count - mean[:, None] * mean).numpy()
    deviation = np.sqrt(np.clip(np.diag(covariance), 0, None))
    alive = deviation > 1e-8 + 1e-7 * np.abs(mean.numpy())
    scale = np.where(alive, deviation, 1.0)
    correlation = np.abs(covariance / scale[:, None] / scale) * alive[:, None] * alive
    np.fill_diagonal(correlation, 0.0)
    return np.minimum(correlation, 1.0), alive.astype(np.float64)


def _redundancy(correlation: Rows, left: NDArray[np.bool_], how: str) -> Rows:
    """Of each channel, with those that are left."""
    others = correlation * left
    return np.asarray(others.max(axis=1) if how == "max" else others.sum(axis=1) / max(left.sum() - 1, 1))


def _removed(size: Rows, correlation: Rows, penalty: float, how: str) -> Rows:
    """Scores in the order in which the lowest channel is removed again and again; each at least the one before."""
    left = np.ones(len(size), dtype=bool)
    scores, floor = np.zeros(len(size)), 0.0
    sums = correlation.sum(axis=1)
    for count in range(len(size) - 1, -1, -1):
        redundancy = sums / max(count, 1) if how == "mean" else _redundancy(correlation, left, how)
        now = np.where(left, size * (1 - penalty * redundancy), np.inf)
        channel = int(now.argmin())
        floor = max(float(now[channel]), floor * (1 + 1e-6))
        scores[channel], left[channel] = floor, False
        sums -= correlation[:, channel]
    return scores


def sirfp(groups: Groups, activations: Activations, learning: Learning | None = None, *, detail: Part = 0.4, decoder: str = "",
          steps: Whole = 0, momentum: Share = 0.999, lr: Annotated[Number, Field(gt=0)] = 0.01) -> dict[str, Rows]:  # fmt: skip
    """Spatially aware redundancy (Wu et al., AAAI 2025): channels whose maps are like many others' go first.

    Maps have L1 norm 1; S is the mean of their products. Again and again the channel with the largest sum of abs(S) over those
    that are left is removed, and loses as much; the lowest score of all is then 0. `detail`: what each map's detail (deviation
    of its Sobel gradient) counts at the start; 0 for groups whose names match the pattern `decoder`. With `steps` the model is
    not looked at as it is, but while a copy learns for so many steps of rate `lr`, and means are exponential with `momentum`.
    """
    shares = _shares(groups, detail, decoder)
    if steps and learning is None:
        raise ConfigError(
            "option 'steps' of criterion 'sirfp' is for a short training: it needs labelled batches and a loss"
        )
    keep = momentum if steps else 1.0
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    weight = 0.0
    for seen in learning.steps(steps, lr) if steps and learning is not None else activations:
        weight = keep * weight + 1
        for name, maps in seen.maps.items():
            found = (
                torch.stack([_similarity(m) for m in maps]).mean(dim=0).cpu(),
                torch.stack([_detail(m) for m in maps]).mean(dim=0).cpu(),
            )
            before = sums.get(name)
            sums[name] = found if before is None else (keep * before[0] + found[0], keep * before[1] + found[1])
    scores = {name: _clique((products / weight).double().numpy(), shares[name] * (details / weight).double().numpy())
              for name, (products, details) in sums.items()}  # fmt: skip
    lowest = min((float(values.min()) for values in scores.values()), default=0.0)
    return {name: values - lowest for name, values in scores.items()}


def _shares(groups: Groups, detail: float, decoder: str) -> dict[str, float]:
    if decoder and not any(fnmatchcase(name, decoder) for name in groups):
        raise ConfigError(f"no group matches '{decoder}' of option 'decoder'{nearest(decoder, groups)}")
    return {name: 0.0 if decoder and fnmatchcase(name, decoder) else detail for name in groups}


def _similarity(maps: Tensor) -> Tensor:
    """Mean over samples of the products of maps of L1 norm 1, ``(width, width)``."""
    flat = maps.flatten(2).float()
    flat = flat / (flat.abs().sum(dim=2, keepdim=True) + 1e-5)
    return torch.einsum("bip,bjp->ij", flat, flat) / len(flat)


def _detail(maps: Tensor) -> Tensor:
    """Deviation over positions of the size of the Sobel gradient, mean over samples, ``(width,)``."""
    axes = maps.dim() - 2
    if axes not in (1, 2, 3):
        return torch.zeros(maps.shape[1], device=maps.device)
    offsets = torch.stack(torch.meshgrid(*[torch.arange(-1.0, 2.0)] * axes, indexing="ij"))
    kernels = (offsets / offsets.square().sum(dim=0).clamp_min(1)).unsqueeze(1).to(maps.device)
    flat = maps.float().flatten(0, 1).unsqueeze(1)
    ones = [1] * axes
    size = (
        torch.convolution(flat, kernels, None, ones, ones, ones, transposed=False, output_padding=[0] * axes, groups=1)
        .square()
        .sum(dim=1)
        .sqrt()
    )
    return size.flatten(1).std(dim=1, correction=0).view(maps.shape[:2]).mean(dim=0)


def _clique(similarity: Rows, start: Rows) -> Rows:
    scores, left = start.copy(), np.ones(len(start), dtype=bool)
    sums = np.abs(similarity).sum(axis=1)
    for _ in range(len(start)):
        channel = int(np.where(left, sums, -np.inf).argmax())
        scores[channel] -= sums[channel]
        left[channel] = False
        sums = sums - np.abs(similarity[:, channel])
    return scores
