"""Masks for all layers of a network: single kernels, patterns, N:M runs or single weights, by layer or over the network.

How a mask of one weight is made, kept while training and folded in: `pydeploy.prune.surgery.masks`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from pydeploy.errors import ConfigError, DataError, Mismatch
from pydeploy.graph import Graph, Op
from pydeploy.prune.criteria.magnitude import lamp_scores
from pydeploy.prune.surgery.masks import Masks, n_m_mask, pattern_mask
from pydeploy.settings import Number, Positive, Settings


class MaskRules(Settings):
    """What is masked."""

    kind: Literal["kernel", "magnitude", "lamp", "pattern", "nm"] = "kernel"
    """Whole kernels by L1 norm; single weights by size, or by LAMP; 3x3 kernels to a library of patterns; N of M input channels."""
    ratio: Annotated[Number, Field(gt=0, lt=1)] | None = None
    """Share of kernels or weights to remove; 0.5 where none is given."""
    scope: Literal["local", "global"] | None = None
    """Whether every layer loses the ratio, or the network as a whole; lamp is always global."""
    n: Positive = 2
    m: Positive = 4
    patterns: Positive = 8
    """Size of the library; every kernel keeps four of nine weights."""

    @model_validator(mode="after")
    def _fits(self) -> MaskRules:
        fixed = self.kind in ("pattern", "nm")
        if fixed and (self.ratio is not None or self.scope is not None):
            raise ValueError(f"kind {self.kind} removes a fixed share of every layer; it takes neither ratio nor scope")
        if self.kind == "lamp" and self.scope == "local":
            raise ValueError("kind lamp divides the ratio among the layers, which is a global scope")
        if not self.n < self.m <= 64:
            raise ValueError(f"N:M sparsity needs n < m <= 64, not {self.n}:{self.m}")
        return self


@dataclass(frozen=True)
class Masking:
    """Masks by weight, and why the other layers have none."""

    masks: Masks
    skipped: dict[str, str]


def masks_for(model: nn.Module, graph: Graph, rules: MaskRules) -> Masking:
    """Masks of the layers of `graph`, a trace of `model`, by `rules`. Every layer keeps something of its weight.

    Raises `Mismatch` for another model, `DataError` for weights that are not finite, `ConfigError` where no layer can be masked.
    """
    tensors = model.state_dict()
    weights: dict[str, Tensor] = {}
    skipped: dict[str, str] = {}
    for op in graph.ops:
        weight = tensors.get(op.weight)
        if weight is None or tuple(weight.shape) != tuple(graph.params[op.weight]):
            raise Mismatch(
                f"the graph has the layer weight '{op.weight}', which the model lacks or has in another shape"
            )
        if not bool(torch.isfinite(weight).all()):
            raise DataError(f"'{op.weight}' holds NaN or infinity")
        if why := _objection(op, weight, op.cin.at(graph.widths), rules):
            skipped[op.weight] = why
        else:
            weights[op.weight] = weight
    if not weights:
        raise ConfigError(f"no layer can have a mask of kind {rules.kind}: " + "; ".join(sorted(set(skipped.values()))))
    if rules.kind == "pattern":
        return Masking({name: pattern_mask(weight, 4, rules.patterns) for name, weight in weights.items()}, skipped)
    if rules.kind == "nm":
        return Masking({name: n_m_mask(weight, rules.n, rules.m) for name, weight in weights.items()}, skipped)
    return Masking(_largest(weights, rules), skipped)


def _objection(op: Op, weight: Tensor, inputs: int, rules: MaskRules) -> str:
    """Why a layer with so many inputs cannot have such a mask; '' where it can."""
    if rules.kind == "kernel" and (weight.dim() < 3 or op.depthwise):
        return "a linear or depthwise layer has no kernels to choose among"
    if rules.kind == "pattern" and (weight.dim() != 4 or tuple(weight.shape[2:]) != (3, 3)):
        return "patterns are for 3x3 kernels"
    if rules.kind == "nm" and (op.depthwise or op.kind == "conv_transpose" or weight.shape[1] * op.groups != inputs):
        return "N:M runs along the input channels of plain layers"
    if rules.kind == "nm" and (weight.shape[1] % rules.m or weight.shape[1] < 32 or weight.shape[0] % 8):
        return f"sparse kernels take at least 32 inputs, a multiple of {rules.m}, and outputs in multiples of 8"
    return ""


def _largest(weights: dict[str, Tensor], rules: MaskRules) -> dict[str, Tensor]:
    """Masks that keep what scores highest; exactly the ratio goes, but for the last piece of a layer."""
    ratio = 0.5 if rules.ratio is None else rules.ratio
    scores = {name: _scores(weight, rules.kind) for name, weight in weights.items()}
    if rules.kind == "lamp" or rules.scope == "global":
        every = np.concatenate(list(scores.values()))
        kept = np.zeros(len(every), dtype=np.bool_)
        kept[np.argsort(-every, kind="stable")[: len(every) - int(ratio * len(every))]] = True
        parts = np.split(kept, np.cumsum([len(values) for values in scores.values()])[:-1])
    else:
        parts = []
        for values in scores.values():
            kept = np.zeros(len(values), dtype=np.bool_)
            kept[np.argsort(-values, kind="stable")[: len(values) - int(ratio * len(values))]] = True
            parts.append(kept)
    masks = {}
    for (name, weight), kept in zip(weights.items(), parts, strict=True):
        kept[int(scores[name].argmax())] = True
        shape = weight.shape[:2] + (1,) * (weight.dim() - 2) if rules.kind == "kernel" else weight.shape
        masks[name] = torch.from_numpy(kept).reshape(shape).expand(weight.shape).clone()
    return masks


def _scores(weight: Tensor, kind: str) -> NDArray[np.float64]:
    """One for each kernel, over the layer's mean, or for each weight."""
    values = weight.detach().cpu().double()
    if kind == "kernel":
        norms = values.flatten(2).abs().sum(dim=2).flatten().numpy()
        return np.asarray(norms / max(norms.mean(), 1e-30))
    return (
        lamp_scores(values.square().flatten().numpy()) if kind == "lamp" else np.asarray(values.abs().flatten().numpy())
    )
