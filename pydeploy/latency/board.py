"""Measuring on a board: a folder of probes that goes there, and what comes back when only trtexec ran on it.

* A probe folder holds ``model.onnx``, ``graph.json`` and ``probes.json`` (candidate widths, batch). With it a board
  measures a table from files alone, without PyTorch.
* For a board without Python bindings the folder also gets one ONNX file a probe and ``measure.sh`` with trtexec's
  commands; the JSON files that these leave beside the ONNX files make the table on any machine.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from pydeploy.backends.tensorrt import compat, trtexec
from pydeploy.backends.tensorrt.condition import UNSTABLE
from pydeploy.backends.tensorrt.options import Options
from pydeploy.errors import DataError
from pydeploy.files import read_json, replacing, write_json, write_text
from pydeploy.graph import Graph, Widths
from pydeploy.latency.design import Grid, probe_plans
from pydeploy.latency.measure import probe_name
from pydeploy.latency.probe import resize
from pydeploy.latency.table import Table, origin
from pydeploy.profile import attribute
from pydeploy.timing import Profile, Target, Timing

Convert = Callable[[Path], onnx.ModelProto]
"""A typed model of the float one in a file."""


@dataclass(frozen=True, slots=True)
class ProbeFolder:
    """What a board needs to know."""

    path: Path
    graph: Graph
    widths: Grid
    batch: int

    @property
    def model(self) -> Path:
        """The dense ONNX file."""
        return self.path / "model.onnx"

    @classmethod
    def write(cls, path: Path, model: Path, graph: Graph, widths: Grid, batch: int) -> ProbeFolder:
        """A new folder with a copy of the dense ONNX file `model`."""
        path.mkdir(parents=True, exist_ok=True)
        with replacing(path / "model.onnx") as partial:
            shutil.copyfile(model, partial)
        graph.save(path / "graph.json")
        grid = {name: list(values) for name, values in widths.items()}
        write_json(path / "probes.json", {"schema": 1, "graph": graph.fingerprint, "batch": batch, "widths": grid})
        return cls(path, graph, widths, batch)

    @classmethod
    def load(cls, path: Path) -> ProbeFolder:
        """The folder at `path`; `DataError` when a file is missing or they do not belong together."""
        if not (path / "probes.json").is_file():
            raise DataError(
                f"{path} is no folder of probes (probes.json is missing); make one with 'pydeploy table probes'"
            )
        data, graph = read_json(path / "probes.json"), Graph.load(path / "graph.json")
        try:
            widths = {str(name): tuple(int(w) for w in values) for name, values in data["widths"].items()}
            fingerprint, batch = data["graph"], int(data["batch"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path / 'probes.json'} is damaged ({error!r}); make the folder again") from None
        if fingerprint != graph.fingerprint:
            raise DataError(
                f"{path / 'graph.json'} is not the graph that the probes were made for; copy the whole folder again"
            )
        return cls(path, graph, widths, batch)

    def plans(self, limit: int | None = None) -> dict[str, Widths]:
        """Widths of every probe by its file's name."""
        return {f"probe{index:03d}": plan for index, plan in enumerate(probe_plans(self.graph, self.widths, limit))}

    def write_script(
        self,
        version: compat.Version,
        precision: str,
        options: Options,
        *,
        limit: int | None = None,
        program: str = "trtexec",
        convert: Convert | None = None,
    ) -> Path:
        """``measure.sh`` and the ONNX files that it runs through trtexec; `convert` makes typed ones of them."""  # fmt: skip
        dense = onnx.load(self.model)
        lines = [
            "#!/bin/sh",
            "# Run in this folder on the board. An interrupted run goes on where it stopped.",
            "set -eu",
        ]
        for name, widths in self.plans(limit).items():
            seed = int(hashlib.sha256(name.encode()).hexdigest()[:16], 16)
            model = resize(dense, self.graph, widths, np.random.default_rng(seed))
            onnx.save(model, self.path / f"{name}.onnx")
            if convert is not None:
                onnx.save(convert(self.path / f"{name}.onnx"), self.path / f"{name}.onnx")
            arguments = trtexec.command(Path(f"{name}.onnx"), version, precision, program=program, options=options,
                                        typed_file=convert is not None)  # fmt: skip
            done = trtexec.Files.beside(Path(f"{name}.onnx")).layers
            lines.append(
                f"test -s {done} || {shlex.join(arguments)} > {name}.log 2>&1 || {{ tail -n 5 {name}.log; exit 1; }}"
            )
        write_text(self.path / "measure.sh", "\n".join(lines) + "\n")
        return self.path / "measure.sh"

    def import_runs(self, table: Table) -> tuple[int, list[str]]:
        """Put what trtexec left in this folder into `table`: probes added now, and names of probes without files."""
        added, missing = 0, []
        for name, widths in self.plans().items():
            files = trtexec.Files.beside(self.path / f"{name}.onnx")
            stored = probe_name(self.graph, widths, 0)
            if not files.layers.is_file():
                missing.append(name)
            elif stored not in table.probes():
                found = profile_from(trtexec.read_run(files), table.target, [op.name for op in self.graph.ops])
                nothing = Timing(1, 0.0, 0.0, 0.0)
                layers = {op: found.layers.get(op, nothing) for op in ["", *(op.name for op in self.graph.ops)]}
                table.add_network(self.graph, widths, found.whole, layers, origin("probe", stored))
                added += 1
        if not added and len(missing) == len(self.plans()):
            raise DataError(
                f"{self.path} holds no files of trtexec; run measure.sh on the board and copy the folder back"
            )
        return added, missing


def target_from(device: str, version: str, precision: str, batch: int, options: Options) -> Target:
    """The target of measurements that trtexec made on another machine, as the user states it."""
    compat.parse_version(version)
    facts = {"measured_with": "trtexec", **({"options": str(options)} if str(options) else {})}
    return Target(device, "tensorrt", version, precision, batch, 1, facts)


def profile_from(run: trtexec.Run, target: Target, ops: Sequence[str] | None = None) -> Profile:
    """A run of trtexec as a `Profile`. Of layers only medians are known: their p10 and p90 equal it."""
    variation = float(run.whole_us.std() / run.whole_us.mean())
    unstable = variation > UNSTABLE
    medians = _by_name(run) if ops is None else {op: float(us[0]) for op, us in attribute(run.layers, ops).items()}
    layers = {name: Timing(run.count, us, us, us, unstable) for name, us in medians.items()}
    condition: dict[str, Any] = {
        "variation": variation,
        "unstable": float(unstable),
        "profiler_us_per_layer": run.overhead_us,
    }
    return Profile(target, Timing.of(run.whole_us, disturbed=unstable), layers, condition)


def _by_name(run: trtexec.Run) -> dict[str, float]:
    found: dict[str, float] = {}
    for layer in run.layers:
        name = layer.origins[0] if layer.origins else layer.name
        found[name] = found.get(name, 0.0) + float(layer.samples_us[0])
    return found
