"""Bias correction: what rounding the weights adds to a channel's mean is taken off its bias.

A rounded weight is off by ``e``, so a channel's output is off by ``sum e x``, whose mean over the data is ``sum e E[x]``: a
shift that later layers do not average out. Depthwise layers have few weights a channel, so their shifts are the largest.
The means of the layers' inputs are counted beside the histograms (`ChannelSums`).

Source: Nagel et al., "Data-free quantization through weight equalization and bias correction", arXiv 1906.04721,
section 4.2, with means that were measured. Zeros that pad the borders are left out of account.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from pydeploy.onnxfile.nodes import channels

COARSE, FINE = 2.0**8, 2.0**48
"""Parts of 1 in which means are added up; integers, so that the order of the samples leaves no trace."""
CORRECTED = frozenset({"Conv", "ConvTranspose", "Gemm"})
"""Layers that have a bias of their own."""


@dataclass
class ChannelSums:
    """Sums over samples of each channel's mean: integers, in coarse and in fine parts."""

    parts: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, 0), np.int64))
    """Shape ``(2, channels)``."""

    def add(self, values: NDArray[Any]) -> None:
        """Add one sample's channel means; `values` is ``(1, channels, ...)``."""
        means = values.reshape(values.shape[1], -1).mean(axis=1, dtype=np.float32).astype(np.float64)
        coarse = np.rint(means * COARSE)
        fine = np.rint((means - coarse / COARSE) * FINE)
        found = np.stack([coarse, fine]).astype(np.int64)
        self.parts = self.parts + found if self.parts.size else found

    def mean(self, count: int) -> tuple[float, ...]:
        """Each channel's mean over `count` samples."""
        coarse, fine = self.parts.astype(np.float64)
        return tuple(((coarse / COARSE + fine / FINE) / count).tolist())


def stored_bias(node: gs.Node) -> gs.Constant | None:
    """A layer's own bias, where it is stored and holds one number per output channel."""
    if node.op not in CORRECTED or len(node.inputs) < 3 or not isinstance(node.inputs[1], gs.Constant):
        return None
    bias = node.inputs[2]
    return bias if isinstance(bias, gs.Constant) and tuple(bias.shape) == (channels(node)[1],) else None


def corrected_inputs(nodes: Iterable[gs.Node]) -> frozenset[str]:
    """Tensors of which `ChannelSums` are wanted: inputs of layers that have a bias."""
    return frozenset(node.inputs[0].name for node in nodes if stored_bias(node) is not None)


def shift(node: gs.Node, error: NDArray[np.float64], means: NDArray[np.float64]) -> NDArray[np.float64]:
    """What an `error` of the weights, in their shape, adds to each output channel's mean, shape ``(channels,)``.

    `means` are those of the input's channels, shape ``(channels in,)``.
    """
    if node.op == "Gemm":
        return np.asarray(error @ means if node.attrs.get("transB", 0) else means @ error)
    taps = error.sum(axis=tuple(range(2, error.ndim)))
    groups = int(node.attrs.get("group", 1))
    inputs, split = means.reshape(groups, -1), taps.reshape(groups, -1, taps.shape[1])
    if node.op == "Conv":
        return np.asarray(np.einsum("gok,gk->go", split, inputs)).ravel()
    # Of a transposed kernel, each output pixel meets one tap in `strides`.
    strides = float(np.prod(node.attrs.get("strides", [1])))
    return np.asarray(np.einsum("gko,gk->go", split, inputs)).ravel() / strides
