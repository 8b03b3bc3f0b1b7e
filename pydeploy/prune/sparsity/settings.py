"""How a network is trained so that channels become small: which term, how strong, on which layers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pydeploy.settings import Number, Settings


class SparsitySettings(Settings):
    """What is added to the training of the dense model."""

    kind: Literal["slimming", "ista", "group_norm"] = "slimming"
    """`slimming`: subgradient of abs(gamma) (Liu et al., ICCV 2017). `ista`: proximal step, exact zeros (Ye et al., ICLR 2018).
    `group_norm`: weight decay of whole channels, stronger for the less important (Fang et al., CVPR 2023)."""
    rate: Annotated[Number, Field(gt=0)] = 1e-4
    """Strength of the term."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the strength falls over the training."""
    layers: Literal["shortcut", "normal"] = "shortcut"
    """With normal, groups that several layers write (those with shortcuts) are left alone."""
    cost: Literal["none", "memory", "speed"] = "none"
    """For ista: the term of a channel grows with the memory or the multiply-accumulates that it takes."""
    rescale: Annotated[Number, Field(gt=0, le=1)] = 1.0
    """For ista on a trained network: gammas and betas start times this, their readers over this, so that zeros come sooner."""
