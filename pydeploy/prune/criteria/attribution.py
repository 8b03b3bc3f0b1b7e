"""Criteria of what channels contribute to the classes that the network predicts."""

from __future__ import annotations

import numpy as np
import torch

from pydeploy.errors import DataError
from pydeploy.prune.criteria.activations import Activations, Seen, logits_of
from pydeploy.prune.criteria.members import Groups, Rows


def fgp(groups: Groups, activations: Activations, *, elementwise: bool = False) -> dict[str, Rows]:
    """Grad-CAM of every predicted class, kept apart by channel (Feature-Gradient Pruning): sum over classes, mean over images.

    A channel's map is ``ReLU(weight * activation)``, its weight the mean over positions of the derivative of the class's logits
    where that class is predicted. `elementwise`: the derivative itself in place of its mean.
    """
    totals: dict[str, Rows] = {}
    images = 0
    for seen in activations:
        images += seen.samples
        for name, values in _contributions(seen, elementwise).items():
            totals[name] = totals.get(name, np.zeros(groups[name].width)) + values
    return {name: total / images for name, total in totals.items()}


def _contributions(seen: Seen, elementwise: bool) -> dict[str, Rows]:
    """Of one batch, summed over its images and classes."""
    logits = logits_of(seen.output)
    if logits is None or not logits.requires_grad:
        raise DataError("criterion 'fgp' needs an output with classes: (samples, classes, positions...)")
    predicted = logits.argmax(dim=1)
    totals: dict[str, Rows] = {}
    for label in torch.unique(predicted).tolist():
        score = (logits[:, label] * (predicted == label)).sum()
        gradients = seen.gradients(score)
        for name, maps in seen.maps.items():
            found = [
                _energy(m.flatten(2), g.flatten(2), elementwise) for m, g in zip(maps, gradients[name], strict=True)
            ]
            totals[name] = totals.get(name, 0.0) + np.mean(found, axis=0)
    return totals


def _energy(maps: torch.Tensor, gradients: torch.Tensor, elementwise: bool) -> Rows:
    weights = gradients if elementwise else gradients.mean(dim=2, keepdim=True)
    return np.asarray((weights * maps).relu().mean(dim=2).sum(dim=0).double().cpu().numpy())
