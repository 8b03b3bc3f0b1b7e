"""A CNN, a device and a latency budget in; an engine that was measured to meet the budget out.

The public names below are loaded when first used, so importing pydeploy (and ``pydeploy --help``) is quick and a
board without torch can measure.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydeploy.baselines import uniform
    from pydeploy.graph import Graph, Plan
    from pydeploy.latency.measure import measure
    from pydeploy.latency.table import Table
    from pydeploy.prune.absorb import channel_means
    from pydeploy.prune.entries import compose
    from pydeploy.prune.fold import fold
    from pydeploy.prune.importance import score
    from pydeploy.prune.io import load, save
    from pydeploy.prune.surgery import apply
    from pydeploy.prune.trace import trace
    from pydeploy.quant.calibrate import calibrate
    from pydeploy.quant.qdq import quantize
    from pydeploy.solve import pareto_front, solve
    from pydeploy.version import __version__

_HOMES = {
    "Graph": "pydeploy.graph",
    "Plan": "pydeploy.graph",
    "Table": "pydeploy.latency.table",
    "__version__": "pydeploy.version",
    "apply": "pydeploy.prune.surgery",
    "calibrate": "pydeploy.quant.calibrate",
    "channel_means": "pydeploy.prune.absorb",
    "compose": "pydeploy.prune.entries",
    "fold": "pydeploy.prune.fold",
    "load": "pydeploy.prune.io",
    "measure": "pydeploy.latency.measure",
    "pareto_front": "pydeploy.solve",
    "quantize": "pydeploy.quant.qdq",
    "save": "pydeploy.prune.io",
    "score": "pydeploy.prune.importance",
    "solve": "pydeploy.solve",
    "trace": "pydeploy.prune.trace",
    "uniform": "pydeploy.baselines",
}

__all__ = ["Graph", "Plan", "Table", "__version__", "apply", "calibrate", "channel_means", "compose", "fold", "load",
           "measure", "pareto_front", "quantize", "save", "score", "solve", "trace", "uniform"]  # fmt: skip


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'pydeploy' has no attribute '{name}'")
    try:
        return getattr(importlib.import_module(home), name)
    except ImportError as error:
        if error.name == "pydeploy._core":
            raise ImportError(
                "pydeploy's compiled part (pydeploy._core) is missing. In a source checkout run 'make setup' "
                "(or 'pip install -e .'); otherwise reinstall the package: pip install --force-reinstall pydeploy"
            ) from error
        raise
