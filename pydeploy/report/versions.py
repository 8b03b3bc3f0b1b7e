"""``report.json`` as earlier versions wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def of_version_1(data: Mapping[str, Any]) -> dict[str, Any]:
    """A report of version 1 in the form of version 2: all metrics were shares, called accuracies; two entries were never filled."""
    names, gone = {"accuracy": "value", "accuracy_n": "samples"}, ("seeds", "verification_error")

    def now(one: Any) -> Any:
        return (
            {names.get(key, key): value for key, value in one.items() if key not in gone}
            if isinstance(one, dict)
            else one
        )

    found = {**data, "schema": 2, "table": now(data.get("table"))}
    if isinstance(metric := data.get("metric"), str):
        found["metric"] = {"name": metric}
    if isinstance(models := data.get("models"), dict):
        found["models"] = {name: now(one) for name, one in models.items()}
    if isinstance(points := data.get("candidates"), list):
        found["candidates"] = [now(one) for one in points]
    return found
