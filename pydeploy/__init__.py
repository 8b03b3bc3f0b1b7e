"""A CNN, a device and a latency budget in; an engine that was measured to meet the budget out.

The public names below are loaded when first used, so importing pydeploy (and ``pydeploy --help``) is quick and a
board without torch can measure. No public name may be that of a module of this package: the import system binds a
module to its package under its name, over whatever is there.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydeploy.backends.base import open_engine
    from pydeploy.graph import Graph
    from pydeploy.latency.probes.measure import measure
    from pydeploy.latency.table.table import Table
    from pydeploy.plan import Plan
    from pydeploy.planning.baselines import uniform
    from pydeploy.planning.engine_files import build_engine
    from pydeploy.planning.meet_budget import meet_budget
    from pydeploy.planning.select import select
    from pydeploy.planning.solve import pareto_front, solve
    from pydeploy.prune.criteria.score import score
    from pydeploy.prune.structure.trace import trace
    from pydeploy.prune.surgery.absorb import channel_means
    from pydeploy.prune.surgery.apply import apply
    from pydeploy.prune.surgery.fold import fold
    from pydeploy.prune.surgery.kept_entries import compose
    from pydeploy.prune.surgery.recalibrate import recalibrate
    from pydeploy.prune.surgery.save import load, save
    from pydeploy.quant.calibrate import calibrate
    from pydeploy.quant.qdq import quantize
    from pydeploy.run.deploy import deploy
    from pydeploy.tasks.metric import Metric
    from pydeploy.version import __version__

# ONNX Runtime would otherwise write a device id to the home folder, and run a thread of its own while latencies are measured.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {
    "Graph": "pydeploy.graph",
    "Metric": "pydeploy.tasks.metric",
    "Plan": "pydeploy.plan",
    "Table": "pydeploy.latency.table.table",
    "__version__": "pydeploy.version",
    "apply": "pydeploy.prune.surgery.apply",
    "build_engine": "pydeploy.planning.engine_files",
    "calibrate": "pydeploy.quant.calibrate",
    "channel_means": "pydeploy.prune.surgery.absorb",
    "compose": "pydeploy.prune.surgery.kept_entries",
    "deploy": "pydeploy.run.deploy",
    "fold": "pydeploy.prune.surgery.fold",
    "load": "pydeploy.prune.surgery.save",
    "measure": "pydeploy.latency.probes.measure",
    "meet_budget": "pydeploy.planning.meet_budget",
    "open_engine": "pydeploy.backends.base",
    "pareto_front": "pydeploy.planning.solve",
    "quantize": "pydeploy.quant.qdq",
    "recalibrate": "pydeploy.prune.surgery.recalibrate",
    "save": "pydeploy.prune.surgery.save",
    "score": "pydeploy.prune.criteria.score",
    "select": "pydeploy.planning.select",
    "solve": "pydeploy.planning.solve",
    "trace": "pydeploy.prune.structure.trace",
    "uniform": "pydeploy.planning.baselines",
}

__all__ = ["Graph", "Metric", "Plan", "Table", "__version__", "apply", "build_engine", "calibrate", "channel_means", "compose", "deploy",
           "fold", "load",
           "measure", "meet_budget", "open_engine", "pareto_front", "quantize", "recalibrate", "save", "score", "select",
           "solve", "trace", "uniform"]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "_core":
        return _compiled_part()
    if name not in _HOMES:
        raise AttributeError(f"module 'pydeploy' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def _compiled_part() -> ModuleType:
    """Asked for by ``from pydeploy import _core``, as all modules import it."""
    try:
        return importlib.import_module("pydeploy._core")
    except ImportError as error:
        raise ImportError(
            f"pydeploy's compiled part (pydeploy._core) is missing or cannot be loaded ({error}). In a source checkout run "
            "'make setup' (or 'pip install -e .'); otherwise reinstall the package: pip install --force-reinstall pydeploy-hil",
            name="pydeploy._core",
        ) from error
