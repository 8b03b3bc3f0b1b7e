"""What ``--set`` changed of a config: kept in the run directory, so that ``--resume`` goes on with the same settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydeploy.errors import DataError
from pydeploy.files import read_json, write_json
from pydeploy.run.artefacts import Artefacts


def keep(out: Path, values: Mapping[str, Any]) -> None:
    """Note the values by key, as `pydeploy.run.config.overridden` gives them."""
    write_json(Artefacts(out).overrides, json.loads(json.dumps(dict(values), default=str)))


def remembered(out: Path, values: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Those that were kept in `out`, with `values` in their place where both name a key; `say` is told of them."""
    path = Artefacts(out).overrides
    known = read_json(path) if path.is_file() else {}
    if not isinstance(known, dict):
        raise DataError(f"{path} must hold what --set changed, by key; delete it and give --set again")
    for key, value in known.items():
        if key not in values:
            say(f"--set {key}={json.dumps(value)}: as before")
        elif json.loads(json.dumps(values[key], default=str)) != value:
            say(f"--set {key}: was {json.dumps(value)}, is {json.dumps(values[key], default=str)}")
    return {**known, **values}
