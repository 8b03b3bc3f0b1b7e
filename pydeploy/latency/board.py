"""Measuring on a board: a folder of probes that goes there, and what comes back when only trtexec ran on it.

* A probe folder holds ``model.onnx``, ``graph.json`` and ``probes.json`` (offered widths, batch). With it a board
  measures a table from files alone, without PyTorch.
* For a board without Python bindings the folder also gets one ONNX file a probe, ``measure.sh`` with trtexec's commands
  and ``measure.json`` (what they are for); the JSON files that these leave beside the ONNX files make the table on any
  machine. An int8 probe is quantized, and where TensorRT wants types typed, before it goes to the board.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from pydeploy.backends.base import Backend
from pydeploy.backends.tensorrt import compat, trtexec
from pydeploy.backends.tensorrt.condition import UNSTABLE
from pydeploy.backends.tensorrt.options import Options
from pydeploy.errors import DataError, Mismatch
from pydeploy.files import read_json, replacing, write_json, write_text
from pydeploy.graph import Graph, Widths
from pydeploy.latency.probes.cut_onnx import resize
from pydeploy.latency.probes.design import Grid, probe_plans
from pydeploy.latency.probes.lab import Probe, Transform, build_ahead
from pydeploy.latency.probes.measure import probe_name
from pydeploy.latency.table.table import Table, provenance
from pydeploy.onnxfile.half import is_typed
from pydeploy.onnxfile.read import load_whole
from pydeploy.profiling.profile import named_layers, paddings
from pydeploy.timing.records import Profile, Target, Timing


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
        """A new folder with a copy of the dense ONNX file `model`.

        Raises `DataError` for a file that is no ONNX model, `Mismatch` for one that `graph` does not describe.
        """
        resize(load_whole(model), graph, {})
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

    @property
    def engines(self) -> Path:
        """Where engines lie that were built ahead."""
        return self.path / "engines"

    def build_engines(self, backend: Backend, limit: int | None = None) -> int:
        """Build the engines that a board will measure; their number. `Mismatch` where the backend has another batch."""
        if backend.batch != self.batch:
            raise Mismatch(f"{self.path} is for batch {self.batch}, the backend is set to {backend.batch}")
        plans = probe_plans(self.graph, self.widths, limit)
        build_ahead(self.graph, self.model, backend, [Probe(probe_name(self.graph, plan, 0), plan) for plan in plans],
                    self.engines)  # fmt: skip
        return len(plans) + 1

    def plans(self, limit: int | None = None) -> dict[str, Widths]:
        """Widths of every probe by its file's name, which is made of the widths: a limit does not change it."""
        return {f"probe-{_digest(plan)[:12]}": plan for plan in probe_plans(self.graph, self.widths, limit)}

    def write_script(
        self,
        version: compat.Version,
        precision: str,
        options: Options,
        *,
        limit: int | None = None,
        program: str = "trtexec",
        convert: Transform | None = None,
    ) -> Path:
        """``measure.sh`` and the ONNX files that it runs through trtexec; `convert` makes typed or int8 ones of them."""  # fmt: skip
        dense, plans = load_whole(self.model), self.plans(limit)
        least = max(1, round(len(plans) * trtexec.LEAST_S / 60))
        lines = [
            "#!/bin/sh",
            "# Run in this folder on the board. An interrupted run goes on where it stopped.",
            "set -eu",
            f"echo '{len(plans)} networks: at least {least} minutes of the device, and the time of their builds'",
        ]
        for number, (name, widths) in enumerate(plans.items(), 1):
            model = resize(dense, self.graph, widths, np.random.default_rng(int(_digest(widths)[:16], 16)))
            model = model if convert is None else convert(model)
            onnx.save(model, self.path / f"{name}.onnx")
            arguments = trtexec.command(Path(f"{name}.onnx"), version, precision, program=program, options=options,
                                        typed_file=is_typed(model))  # fmt: skip
            lines += [f"if ! test -e {name}.done; then",
                      f"  echo 'network {number} of {len(plans)}: {name}'",
                      f"  {shlex.join(arguments)} > {name}.log 2>&1 || {{ tail -n 5 {name}.log; exit 1; }}",
                      f"  touch {name}.done", "fi"]  # fmt: skip
        write_json(self.path / "measure.json", {"schema": 1, "precision": precision, "options": str(options)})
        write_text(self.path / "measure.sh", "\n".join(lines) + "\n")
        return self.path / "measure.sh"

    def import_runs(self, table: Table) -> tuple[int, list[str]]:
        """Put what trtexec left in this folder into `table`: probes added now, and names of probes not measured yet.

        Raises `Mismatch` when the folder was written for another precision or other options than the table's.
        """
        measured, missing = self.measured(table.target)
        added = 0
        for name, widths in measured.items():
            files = trtexec.Files.beside(self.path / f"{name}.onnx")
            stored = probe_name(self.graph, widths, 0)
            if stored not in table.probes():
                found = profile_from(trtexec.read_run(files), table.target, [op.name for op in self.graph.ops])
                nothing = Timing(1, 0.0, 0.0, 0.0)
                layers = {op: found.layers.get(op, nothing) for op in ["", *(op.name for op in self.graph.ops)]}
                made = provenance("probe", stored)
                table.add_network(self.graph, widths, found.whole, layers, made, found.padding)
                added += 1
        return added, missing

    def measured(self, target: Target) -> tuple[dict[str, Widths], list[str]]:
        """Probes that trtexec has finished, and names of those that it has not; raises as `import_runs`."""
        self._require(target)
        written = {name: widths for name, widths in self.plans().items() if (self.path / f"{name}.onnx").is_file()}
        done = {name: widths for name, widths in written.items() if (self.path / f"{name}.done").is_file()}
        if not done:
            raise DataError(
                f"{self.path} holds no files of trtexec; run measure.sh on the board and copy the folder back"
            )
        return done, [name for name in written if name not in done]

    def _require(self, target: Target) -> None:
        if not (self.path / "measure.json").is_file():
            raise DataError(f"{self.path} has no measure.json; write the folder with 'pydeploy table probes --trtexec'")
        written = read_json(self.path / "measure.json")
        facts = {"precision": target.precision, "options": target.facts.get("options", "")}
        for name, stated in facts.items():
            if not isinstance(written, dict) or written.get(name) != stated:
                raise Mismatch(
                    f"{self.path} was written for other measurements ({name}: {dict(written).get(name)!r} against "
                    f"{stated!r}); state the target that 'table probes' was given"
                )


def _digest(widths: Widths) -> str:
    return hashlib.sha256(json.dumps(dict(widths), sort_keys=True).encode()).hexdigest()


def target_from(device: str, version: str, precision: str, batch: int, options: Options) -> Target:
    """The target of measurements that trtexec made on another machine, as the user states it."""
    compat.check_stated(compat.stated_version(version), precision, implicit=bool(options.calibration))
    facts = {"measured_with": "trtexec", **({"options": str(options)} if str(options) else {})}
    return Target(device, "tensorrt", version, precision, batch, 1, facts)


def profile_from(run: trtexec.Run, target: Target, ops: Sequence[str] | None = None) -> Profile:
    """A run of trtexec as a `Profile`. Of layers only medians are known: their p10 and p90 equal it.

    With `ops` layers are named by the model's operators; `DataError` when the engine has none of them.
    """
    variation = float(run.whole_us.std() / run.whole_us.mean())
    unstable = variation > UNSTABLE
    medians = {name: float(us[0]) for name, us in named_layers(run.layers, ops).items()}
    if ops is not None and not set(ops) & set(medians):
        raise DataError(
            f"trtexec's layers are not the model's: '{run.layers[0].name}' and the others name none of its operators; "
            "give the files and the graph of one model"
        )
    layers = {name: Timing(run.count, us, us, us, unstable) for name, us in medians.items()}
    condition: dict[str, Any] = {
        "variation": variation,
        "unstable": float(unstable),
        "profiler_us_per_layer": run.overhead_us,
    }
    whole = Timing.of(run.whole_us, disturbed=unstable)
    return Profile(target, whole, layers, condition, paddings(run.layers, ops))
