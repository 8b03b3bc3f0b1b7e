"""Which channels matter: all criteria by name, one file a family. A new one is a function and a line here."""

from __future__ import annotations

from typing import Any

from pydeploy.guests.names import Names
from pydeploy.prune.criteria import attribution, batchnorm, correlation, defects, gradient, magnitude, markov, random
from pydeploy.prune.criteria.contract import Criterion

_KNOWN = (
    Criterion("random", random.random, "global"),
    Criterion("l1", magnitude.l1, source="Li et al., ICLR 2017"),
    Criterion("l2", magnitude.l2, source="Li et al., ICLR 2017"),
    Criterion("group_norm", magnitude.group_norm, "global", source="Fang et al., CVPR 2023 (DepGraph)"),
    Criterion("lamp", magnitude.lamp, "global", source="Lee et al., ICLR 2021"),
    Criterion("fpgm", magnitude.fpgm, source="He et al., CVPR 2019"),
    Criterion("bn_scale", batchnorm.bn_scale, "global", "a batch norm", "Liu et al., ICCV 2017"),
    Criterion("bn_ista", batchnorm.bn_ista, "global", "a batch norm", "Ye et al., ICLR 2018"),
    Criterion("taylor", gradient.taylor, "global", source="Molchanov et al., CVPR 2019"),
    Criterion("taylor_fo", gradient.taylor_fo, "global", source="Molchanov et al., CVPR 2019"),
    Criterion("taylor_abs", gradient.taylor_abs, "global", source="abs form of taylor_fo"),
    Criterion("taylor_bn", gradient.taylor_bn, "global", "a batch norm", "Molchanov et al., CVPR 2019"),
    Criterion(
        "fgp", attribution.fgp, judges="a layer seen at work", source="Feature-Gradient Pruning, arXiv 2411.12781"
    ),
    Criterion("sirfp", correlation.sirfp, "global", "a layer seen at work", "Wu et al., AAAI 2025"),
    Criterion("dmcp", markov.dmcp, "global", "a training with it", "Guo et al., CVPR 2020"),
    Criterion(
        "dmcp_lite", markov.dmcp_lite, "global", "plain weights of more than one width", "after Guo et al., CVPR 2020"
    ),
    Criterion("l1_corr", correlation.l1_corr, judges="a layer seen at work", source="L1 less Pearson correlation"),
    Criterion(
        "defect_aware", defects.defect_aware, judges="a layer seen at work", source="gradient x activation on defects"
    ),
)


class CriterionNames(Names[Criterion]):
    """`Names` of criteria; a user's function becomes a `Criterion`."""

    def find(self, name: str) -> Criterion:
        found: Any = super().find(name)
        return found if isinstance(found, Criterion) else Criterion(name, found, source="yours")


CRITERIA = CriterionNames(
    kind="criterion",
    expected="a criterion",
    known={criterion.name: criterion for criterion in _KNOWN},
    group="pydeploy.criteria",
)
"""All criteria; ``CRITERIA[NAME]`` raises `ConfigError` for a function whose signature asks for what there is not."""


def installed() -> list[Criterion]:
    """All criteria that have a name: pydeploy's own and the entry points of installed packages."""
    return [CRITERIA.find(name) for name in CRITERIA.all()]
