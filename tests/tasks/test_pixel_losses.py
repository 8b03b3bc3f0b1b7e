"""Losses of pixels against their definitions, with ignored pixels and with none that counts."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from pydeploy.tasks.losses import pixel_cross_entropy, soft_dice


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    classes = torch.randint(0, 3, (2, 5, 6))
    classes[torch.rand(classes.shape) < 0.3] = 255
    return torch.randn(2, 4, 5, 6, requires_grad=True), classes


def test_cross_entropy_is_pytorchs_mean_over_the_pixels_that_count() -> None:
    logits, classes = drawn()
    for weights in (None, torch.tensor([0.5, 2.0, 1.0, 3.0])):
        wanted = F.cross_entropy(logits, classes, weights, ignore_index=255)
        torch.testing.assert_close(pixel_cross_entropy(logits, classes, weights), wanted)


def test_dice_is_its_definition_over_the_classes_that_occur() -> None:
    logits, classes = drawn()
    shares, parts = logits.softmax(1).detach(), []
    for one in range(3):  # the fourth does not occur
        pairs = [(float(shares[n, one, y, x]), float(classes[n, y, x] == one)) for n in range(2) for y in range(5) for x in range(6)
                 if classes[n, y, x] != 255]  # fmt: skip
        parts.append(1 - 2 * sum(p * t for p, t in pairs) / (sum(p for p, _ in pairs) + sum(t for _, t in pairs)))
    torch.testing.assert_close(soft_dice(logits, classes).detach(), torch.tensor(sum(parts) / 3))


def test_a_mask_that_is_ignored_all_over_costs_nothing_and_breaks_nothing() -> None:
    logits, classes = drawn()
    classes[:] = 255
    for loss in (pixel_cross_entropy(logits, classes), soft_dice(logits, classes),
                 pixel_cross_entropy(logits, classes, torch.ones(4))):  # fmt: skip
        assert loss.item() == 0
        (gradient,) = torch.autograd.grad(loss, logits)
        assert not gradient.any()


def test_both_are_near_zero_where_all_is_right() -> None:
    _, classes = drawn()
    sure = 30 * F.one_hot(torch.where(classes == 255, 3, classes), 4).permute(0, 3, 1, 2).float()
    assert float(pixel_cross_entropy(sure, classes)) < 1e-6
    assert float(soft_dice(sure, classes)) < 1e-6
