"""Losses that several tasks share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def soft_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T^2 * KL(softmax(teacher / T) || softmax(student / T))`` over axis 1, averaged over all other axes.

    In float32 whatever the inputs are; no gradient to `teacher`. For ``(N, classes)`` this is the batch mean.
    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015.
    """
    p_student = F.log_softmax(student.float() / temperature, dim=1)
    p_teacher = F.log_softmax(teacher.detach().float() / temperature, dim=1)
    divergence = F.kl_div(p_student, p_teacher, reduction="none", log_target=True).sum(dim=1)
    return divergence.mean() * temperature**2
