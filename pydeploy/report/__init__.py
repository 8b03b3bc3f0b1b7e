"""The report of a run: ``report.json`` (checked), ``report.md``, a self-contained ``report.html``, and its charts.

No torch: a report can be rendered again wherever its JSON is.
"""

from __future__ import annotations

from pydeploy.report.page import render
from pydeploy.report.schema import (
    SCHEMA,
    Candidate,
    GroupWidth,
    Latency,
    Layer,
    ModelResult,
    Models,
    Recommendation,
    Report,
    Round,
    Shown,
    TableFacts,
)
from pydeploy.report.verdict import headline, recommend

__all__ = [
    "SCHEMA",
    "Candidate",
    "GroupWidth",
    "Latency",
    "Layer",
    "ModelResult",
    "Models",
    "Recommendation",
    "Report",
    "Round",
    "Shown",
    "TableFacts",
    "headline",
    "recommend",
    "render",
]
