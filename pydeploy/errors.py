"""The one family of errors a user can cause and repair.

Every text states a fact with its values, what was expected, and what to do. Library code raises;
only ``pydeploy.cli`` catches and prints them (exit code 2, no traceback).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DeployError(Exception):
    """Base of all errors that a user can act on."""


class ConfigError(DeployError):
    """A setting is unknown, of the wrong type, or contradicts another one."""


class DataError(DeployError):
    """A file or data set is missing, truncated, of the wrong shape, or holds NaN."""


class TraceError(DeployError):
    """The model could not be run or its structure contradicts itself."""


class MissingTiming(DeployError):
    """The latency table holds no measurement for what was asked."""


class Infeasible(DeployError):
    """No plan satisfies the budget and the width limits."""


class BackendUnavailable(DeployError):
    """A runtime is not installed, or cannot do what was asked."""


class Mismatch(DeployError):
    """Two artefacts do not belong together (model and plan, table and target, engine and ONNX)."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the known word nearest to `word`, or the list of known words (twenty of them at most)."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f" (did you mean '{close[0]}'?)"
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f" (known: {', '.join(names[:20])}{more})"
