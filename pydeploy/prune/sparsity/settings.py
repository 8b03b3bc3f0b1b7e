"""How a network is trained so that channels become small: which term, how strong, on which layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pydeploy.settings import Number, Place, Settings, Share


class SparsitySettings(Settings):
    """What is added to the training of the dense model."""

    kind: Literal["slimming", "ista", "group_norm", "dmcp"] = "slimming"
    """`slimming`: subgradient of abs(gamma) (Liu et al., ICCV 2017). `ista`: proximal step, exact zeros (Ye et al., ICLR 2018).
    `group_norm`: weight decay of whole channels, stronger for the less important (Fang et al., CVPR 2023). `dmcp`: many widths
    at once, and probabilities of widths that meet `target` (Guo et al., CVPR 2020)."""
    rate: Annotated[Number, Field(gt=0)] = 1e-4
    """Strength of the term; 0.1 for dmcp where nothing is said."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the strength falls over the training."""
    layers: Literal["shortcut", "normal"] = "shortcut"
    """With normal, groups that several layers write (those with shortcuts) are left alone."""
    cost: Literal["none", "memory", "speed", "latency"] = "none"
    """For ista: the term of a channel grows with the memory, the multiply-accumulates or the latency that it takes. For dmcp: what
    `target` is a share of, latency, else multiply-accumulates."""
    table: Place | None = None
    """With cost latency: the latency table of this network on the target, from 'pydeploy table measure' or an earlier run."""
    target: Share = 0.5
    """For dmcp: the share of the dense network's cost that is to stay."""
    rescale: Annotated[Number, Field(gt=0, le=1)] = 1.0
    """For ista on a trained network: gammas and betas start times this, their readers over this, so that zeros come sooner."""

    @model_validator(mode="before")
    @classmethod
    def _rate_of_dmcp(cls, data: Any) -> Any:
        return {"rate": 0.1, **data} if isinstance(data, Mapping) and data.get("kind") == "dmcp" else data

    @model_validator(mode="after")
    def _fits(self) -> SparsitySettings:
        if self.kind == "dmcp" and self.cost == "memory":
            raise ValueError("kind dmcp aims at multiply-accumulates (cost speed) or at latency")
        if (self.cost == "latency") != (self.table is not None):
            raise ValueError("cost latency and a table go together: the table says what a channel takes")
        if self.kind == "dmcp" and self.rescale != 1:
            raise ValueError("kind dmcp takes no rescale; ista does")
        return self
