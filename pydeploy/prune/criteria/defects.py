"""Which channels tell defects: of inspection networks, on the pictures that show one.

No paper; the definition is that of a project's description ("gradient x activation", for the decision), and in mode ``act_mask``
what its code did.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pydeploy.errors import DataError
from pydeploy.prune.criteria.activations import Activations, Seen
from pydeploy.prune.criteria.members import Groups, Rows

EPSILON = 1e-8
Mode = Literal["grad_act", "act_mask"]


def defect_aware(
    groups: Groups, activations: Activations, *, mode: Mode = "grad_act", mask: Literal["defect", "none"] = "defect"
) -> dict[str, Rows]:
    """Mean over the defective pictures of ``abs(activation * derivative of the decision's loss)``, averaged over the defect.

    `mode` ``act_mask`` leaves the derivative out, `mask` ``none`` averages over the whole picture. The batches' targets hold
    ``defective`` (samples, 1), and ``mask`` (samples, 1, h, w), as those of the task inspection do.
    """
    totals = {name: np.zeros(group.width) for name, group in groups.items()}
    found: set[str] = set()
    pictures = batches = 0
    for seen in activations:
        batches += 1
        target = _target(seen)
        chosen, masks = _defective(target, seen.samples, masked=mask == "defect")
        if not len(chosen):
            continue
        pictures += len(chosen)
        slopes = seen.gradients(_decision_loss(seen)) if mode == "grad_act" else None
        for name, maps in seen.maps.items():
            factors = slopes[name] if slopes is not None else [None] * len(maps)
            parts = [_on_defects(one, factor, chosen, masks) for one, factor in zip(maps, factors, strict=True)]
            totals[name] += np.mean(parts, axis=0)
            found.add(name)
    if not pictures:
        raise DataError(f"criterion 'defect_aware' saw no defective picture{' with a mask' * (mask == 'defect')} in {batches} batches: "
                        "give more batches, or ones that show defects" + (", or mask: none" if mask == "defect" else ""))  # fmt: skip
    return {name: totals[name] / pictures for name in found}


def _target(seen: Seen) -> Any:
    """What is known of the samples; a run's batches come whole, with it inside."""
    return getattr(seen.target, "target", seen.target)


def _defective(target: Any, samples: int, *, masked: bool) -> tuple[Tensor, Tensor | None]:
    """Numbers of the defective pictures, those with pixels of a defect if `masked`, and their masks."""
    wanted = ("defective", "mask") if masked else ("defective",)
    missing = [name for name in wanted if not isinstance(target, Mapping) or not isinstance(target.get(name), Tensor)]
    if missing:
        raise DataError(f"criterion 'defect_aware' needs batches whose target is a dict with {' and '.join(wanted)}, as the task "
                        f"inspection gives them; '{missing[0]}' is missing")  # fmt: skip
    defective = target["defective"].reshape(samples, -1)[:, 0] > 0
    if not masked:
        return defective.nonzero()[:, 0], None
    masks = target["mask"].float()
    if masks.dim() != 4 or masks.shape[:2] != (samples, 1):
        raise DataError(
            f"criterion 'defect_aware': masks have the shape {list(masks.shape)}; expected [{samples}, 1, h, w]"
        )
    chosen = (defective & (masks.sum(dim=(1, 2, 3)) > 0)).nonzero()[:, 0]
    return chosen, masks[chosen]


def _decision_loss(seen: Seen) -> Tensor:
    """Binary cross-entropy of the decision, summed over the samples, so that each one's derivative is its own."""
    decisions = [leaf for leaf in tree_leaves(seen.output)
                 if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel() == seen.samples]  # fmt: skip
    if not decisions or not decisions[0].requires_grad:
        raise DataError(
            "criterion 'defect_aware' needs an output with one number a sample, the decision's logit; or mode: act_mask"
        )
    truth = _target(seen)["defective"].reshape(-1).to(decisions[0])
    return F.binary_cross_entropy_with_logits(decisions[0].reshape(-1), truth, reduction="sum")


def _on_defects(values: Tensor, slopes: Tensor | None, chosen: Tensor, masks: Tensor | None) -> Rows:
    """Of one place where channels are made, ``(width,)``: summed over the chosen samples, averaged over the masks' area."""
    strength = (values[chosen] if slopes is None else values[chosen] * slopes[chosen]).abs()
    if strength.dim() != 4 or masks is None:
        return np.asarray(strength.flatten(2).mean(dim=2).sum(dim=0).double().cpu().numpy())
    area = _resized(masks, (strength.shape[2], strength.shape[3])).to(strength)
    shares = (strength * area).sum(dim=(2, 3)) / (area.sum(dim=(2, 3)) + EPSILON)
    return np.asarray(shares.sum(dim=0).double().cpu().numpy())


def _resized(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Smaller by the mean of areas, larger by lines between places."""
    if size[0] <= masks.shape[2] and size[1] <= masks.shape[3]:
        return F.adaptive_avg_pool2d(masks, size)
    return F.interpolate(masks, size, mode="bilinear", align_corners=False)
