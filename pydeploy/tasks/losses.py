"""Losses that several tasks share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pydeploy.data.mask_files import IGNORED


def soft_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T^2 * KL(softmax(teacher / T) || softmax(student / T))`` over axis 1, averaged over all other axes.

    In float32 whatever the inputs are; no gradient to `teacher`. For ``(N, classes)`` this is the batch mean.
    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015.
    """
    p_student = F.log_softmax(student.float() / temperature, dim=1)
    p_teacher = F.log_softmax(teacher.detach().float() / temperature, dim=1)
    divergence = F.kl_div(p_student, p_teacher, reduction="none", log_target=True).sum(dim=1)
    return divergence.mean() * temperature**2


def pixel_cross_entropy(logits: Tensor, classes: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of ``(N, K, H, W)`` with int64 ``(N, H, W)``, averaged by the weights of the pixels' classes.

    Pixels of no class (`IGNORED`) do not count; where no pixel has one, the loss is 0.
    """
    total = F.cross_entropy(logits, classes, weights, ignore_index=IGNORED, reduction="sum")
    counted = classes[classes != IGNORED]
    whole = counted.numel() if weights is None else weights[counted].sum().clamp_min(1e-12)
    return total / max(1, whole) if isinstance(whole, int) else total / whole


def soft_dice(logits: Tensor, classes: Tensor) -> Tensor:
    """``1 - 2 |P T| / (|P| + |T|)`` over the pixels that have a class, averaged over the classes that occur; 0 for none.

    P are shares of the softmax, T is 1 at the pixels of a class. Source: Milletari, Navab and Ahmadi, "V-Net", 2016.
    """
    counted = classes != IGNORED
    shares = logits.float().softmax(dim=1) * counted[:, None]
    truth = F.one_hot(torch.where(counted, classes, 0), logits.shape[1]).permute(0, 3, 1, 2) * counted[:, None]
    axes = (0, 2, 3)
    occurs = truth.sum(axes) > 0
    overlap = 2 * (shares * truth).sum(axes)[occurs] / (shares + truth).sum(axes)[occurs]
    return (1 - overlap).sum() / max(1, int(occurs.sum()))
