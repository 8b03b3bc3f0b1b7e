"""INT8 of a finished run beside NNCF's: accuracy over the full test set, latency in turns. Writes docs/figures/int8.md.

    python bench/int8_report.py --run runs/demo --resnet18 --mixed runs/mobilenet --out docs/figures/int8.md

What `--mixed` names is a finished run whose choice of layers is worth showing; its own report is quoted. NNCF is optional
(``pip install nncf``); its columns are left out where it is missing. Keep the machine quiet.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydeploy.backends.base import Backend, Engine, open_backend
from pydeploy.backends.openvino import OpenVino
from pydeploy.data.manifest import load_manifest
from pydeploy.errors import BackendUnavailable
from pydeploy.files import read_json, sha256, write_json, write_text
from pydeploy.profiling.profile import random_feeds, time_engines
from pydeploy.quant.calibrate import calibrate
from pydeploy.quant.qdq import quantize
from pydeploy.report import Report
from pydeploy.run.config import load
from pydeploy.run.job import open_task
from pydeploy.tasks import samples
from pydeploy.tasks.contract import Task
from pydeploy.tasks.evaluate import batches, evaluate
from pydeploy.timing.records import Timing

ROUNDS, RUNS = 20, 20
RESNET_SAMPLES = 16
SWEEP = "<!-- int8_sweep: begin -->"
"""Where what bench/int8_sweep.py wrote begins; it stays."""
OURS, NNCF = "int8, pydeploy (entropy)", "int8, NNCF"


@dataclass(frozen=True)
class Row:
    """One engine of one network."""

    network: str
    backend: str
    method: str
    accuracy: float | None
    timing: Timing


def nncf_engine(source: Path, samples: list[dict[str, np.ndarray]], backend: OpenVino, out: Path) -> Engine:
    """What ``nncf.quantize`` with its defaults makes of the file, compiled with the same properties as ours."""
    import nncf
    import openvino as ov

    model = ov.Core().read_model(source)
    model = nncf.quantize(model, nncf.Dataset(samples), subset_size=len(samples))
    compiled = backend._core.compile_model(model, "CPU", backend._properties())
    out.write_bytes(b"{}\n" + compiled.export_model().getvalue())
    return Engine(out, backend.name, backend.target(), sha256(source)).save()


def engines_of(
    source: Path, samples: list[dict[str, np.ndarray]], threads: int, work: Path
) -> dict[tuple[str, str], Any]:
    """(backend, method) -> (backend object, engine) of one float file: fp32, ours, NNCF's; bf16 where there is one."""
    found: dict[tuple[str, str], Any] = {}
    for name in ("onnxruntime", "openvino"):
        here = work / name
        here.mkdir(parents=True, exist_ok=True)
        for precision in ("fp32", "bf16", "int8"):
            try:
                backend = open_backend(name, precision=precision, threads=threads)
            except BackendUnavailable:
                continue
            label = OURS if precision == "int8" else precision
            make = (
                partial(our_int8, source, samples, backend) if precision == "int8" else partial(backend.build, source)
            )
            found[name, label] = (backend, _kept(here / f"{precision}.engine", make))
            if precision == "int8" and name == "openvino" and importlib.util.find_spec("nncf") is not None:
                found[name, NNCF] = (
                    backend,
                    _kept(here / "nncf.engine", partial(nncf_engine, source, samples, backend)),
                )
    return found


def our_int8(source: Path, samples: list[dict[str, np.ndarray]], backend: Backend, out: Path) -> Engine:
    """Entropy calibration and Q/DQ in the backend's style."""
    ranges = calibrate(source, samples, observer="entropy", style=backend.name, threads=backend.threads)
    quantize(source, ranges, out.with_suffix(".onnx"), style=backend.name)
    return backend.build(out.with_suffix(".onnx"), out)


def _kept(path: Path, make: Callable[[Path], Engine]) -> Engine:
    """The engine that an earlier call left, or a new one: a first call may prepare what a second one measures."""
    return Engine.load(path) if path.exists() else make(path)


def rows_of(
    network: str,
    engines: dict[tuple[str, str], Any],
    evaluate: Callable[[Any], float] | None,
    feed: dict[str, np.ndarray],
) -> list[Row]:
    """Accuracy of each engine, and the latency of all of them in turns."""
    times = time_engines({str(key): pair for key, pair in engines.items()}, feeds={str(key): feed for key in engines},
                         rounds=ROUNDS, runs=RUNS)  # fmt: skip
    rows = []
    for (name, method), (backend, engine) in engines.items():
        accuracy = None
        if evaluate is not None:
            place = engine.path.with_suffix(".accuracy.json")
            if not place.exists():
                with backend.open(engine) as session:
                    write_json(place, evaluate(session))
            accuracy = float(read_json(place))
        rows.append(Row(network, name, method, accuracy, times[str((name, method))].timing))
    return rows


def right_answers(task: Task, backend: Backend, engine: Engine) -> NDArray[np.bool_]:
    """For each test image, whether the engine names its class."""
    place = engine.path.with_suffix(".right.json")
    if not place.exists():
        with backend.open(engine) as session:
            (name,) = task.input_names
            found = [int(np.argmax(next(iter(session.run({name: batch.inputs[0].numpy()}).values())))) == int(batch.target)
                     for batch in batches(task, "test", 1)]  # fmt: skip
        write_json(place, [int(one) for one in found])
    return np.array(read_json(place), dtype=bool)


def beside_nncf(task: Task, engines: dict[tuple[str, str], Any]) -> str:
    """How far ours and NNCF's engine differ beyond chance, in words: McNemar's exact test (1947), two-sided."""
    keys = [("openvino", OURS), ("openvino", NNCF)]
    if any(key not in engines for key in keys):
        return ""
    ours, theirs = (right_answers(task, *engines[key]) for key in keys)
    a, b = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    chance = min(1.0, 2 * sum(comb(a + b, k) for k in range(min(a, b) + 1)) / 2 ** (a + b))
    return (
        f"Of {len(ours)} images, pydeploy's OpenVINO engine alone names {a} rightly and NNCF's alone {b}: a difference of this size or "
        f"more comes up by chance with probability {chance:.2f}."
    )


def fashion_mnist(run: Path, threads: int, work: Path, notes: dict[str, str]) -> Iterable[Row]:
    """The dense and the pruned network of a run, on its task's test set; `notes` gets a sentence for each."""
    config = load(run / "config.json")
    task, manifest = open_task(config), load_manifest(config.quantize.calibration if config.quantize else Path())
    images = list(samples.exact_batches(samples.calibration_batches(task, manifest), 1))
    for network, folder in (("dense", "04_dense"), ("pruned", "08_pruned")):
        engines = engines_of(run / folder / "model.onnx", images, threads, work / network)
        label = f"{config.model.name} on {task.data}, {network}"
        notes[label] = beside_nncf(task, engines)
        yield from rows_of(
            label, engines, lambda session: evaluate(task, session.run, batch_size=1)[task.metric.name], images[0]
        )


def resnet18(threads: int, work: Path) -> Iterable[Row]:
    """ResNet-18 at 224x224 with random weights: for speed only."""
    import torch
    from torchvision.models import resnet18 as build

    from pydeploy.export import export

    torch.manual_seed(0)
    work.mkdir(parents=True, exist_ok=True)
    source = work / "resnet18.onnx"
    if not source.exists():
        export(build().eval(), torch.randn(1, 3, 224, 224), source)
    spec = open_backend("onnxruntime", threads=threads)
    with spec.open(spec.build(source, work / "inputs.engine")) as session:
        samples = [random_feeds(session.inputs, seed) for seed in range(RESNET_SAMPLES)]
    yield from rows_of(
        "ResNet-18 at 224x224, random weights", engines_of(source, samples, threads, work), None, samples[0]
    )


HEAD = ["| runtime | engine | latency, ms (p10 to p90) | accuracy, % | change, points |", "|---|---|---|---|---|"]


def page(rows: list[Row], notes: dict[str, str], threads: int, command: str) -> list[str]:
    """The document: tables made of `rows` with `notes` by network, what they were measured on, and how to read them."""
    target = open_backend("openvino", threads=threads).target()
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("onnxruntime", "openvino", "nncf")
                         if importlib.util.find_spec(name) is not None)  # fmt: skip
    conditions = (
        f"{target.device}, {threads} threads, batch 1; {packages}. Every engine of a network was timed in turns with the others, "
        f"{ROUNDS} rounds of {RUNS} runs: medians, p10 to p90. Accuracy is of the built engine over the full test set. Activations "
        "were calibrated on the images of the run's manifest (ResNet-18: random weights and inputs, so no accuracy). NNCF is "
        "`nncf.quantize` with its defaults on the same images, compiled with the same properties."
    )
    text = ["# INT8: accuracy and speed", "", f"Written by `{command}` on {datetime.now(timezone.utc):%Y-%m-%d}; do not edit.", "",
            conditions, ""]  # fmt: skip
    for network in dict.fromkeys(row.network for row in rows):
        mine = [row for row in rows if row.network == network]
        base = {row.backend: row.accuracy for row in mine if row.method == "fp32"}
        text += [f"## {network}", "", *HEAD]
        for row in mine:
            before = None if row.method == "fp32" else base.get(row.backend)
            t = row.timing
            text.append(
                _line(row.backend, row.method, (t.median_us, t.p10_us, t.p90_us), t.disturbed, row.accuracy, before)
            )
        text += ["", *([notes[network], ""] if notes.get(network) else [])]
    return text


def _line(
    backend: str, method: str, times_us: tuple[float, float, float], disturbed: bool, accuracy: float | None, before: float | None
) -> str:  # fmt: skip
    median, p10, p90 = (f"{time / 1e3:.3f}" for time in times_us)
    shown = "-" if accuracy is None else f"{100 * accuracy:.2f}"
    change = "-" if accuracy is None or before is None else f"{100 * (accuracy - before):+.2f}"
    flag = ", disturbed" if disturbed else ""
    return f"| {backend} | {method} | {median} ({p10} to {p90}{flag}) | {shown} | {change} |"


def mixed_section(run: Path) -> list[str]:
    """What a finished run chose among its precisions, and which layers its mixed engine has in int8."""
    report, mixed = Report.load(run / "report.json"), read_json(run / "09_mixed" / "mixed.json")
    data, limit = report.config["task"]["data"], report.config["compare"]["limit"]
    names = [layer["name"] for layer in mixed["layers"]]
    kept = [name for name in names if name not in mixed["int8"]]
    about = (
        f"A whole run with at most {limit:g} points of accuracy to lose, on {report.target.backend}; {len(names)} layers can be INT8. "
        f"Times of single layers are those of the {mixed['times']}. {len(mixed['int8'])} layers are INT8 in 'mixed'; in float "
        f"stay {', '.join(f'`{name}`' for name in kept)}."
    )
    text = [f"## Mixed precision: {report.model} on {data}", "", about, "", *HEAD]
    for name, result in report.models.present.items():
        before = None if name == "dense" else report.models.dense.value
        time = result.latency_us
        text.append(_line(report.target.backend, f"{name}, {result.precision}", (time.median, time.p10, time.p90), time.disturbed,
                          result.value, before))  # fmt: skip
    tried = [f"{len(choice['int8'])} layers: {100 * choice[report.metric]:.2f} %" for choice in mixed["tried"]]
    reason = report.recommendation.reason
    told = (
        f"Choices that were built: {'; '.join(tried or [mixed['note']])}. Recommended: **{report.recommendation.model}**. "
        f"{reason[:1].upper()}{reason[1:]}"
    )
    return [*text, "", told, ""]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="folder of a finished 'pydeploy run'")
    parser.add_argument("--out", type=Path, default=Path("docs/figures/int8.md"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("build/int8"))
    parser.add_argument("--resnet18", action="store_true", help="ResNet-18 at 224x224 as well")
    parser.add_argument("--mixed", type=Path, help="folder of a finished run whose mixed precision is shown")
    given = parser.parse_args()
    rows: list[Row] = []
    notes: dict[str, str] = {}
    if given.run is not None:
        rows += fashion_mnist(given.run, given.threads, given.work, notes)
    if given.resnet18:
        rows += resnet18(given.threads, given.work / "resnet18")
    text = page(rows, notes, given.threads, "python bench/int8_report.py --run RUN --resnet18 --mixed RUN")
    written = given.out.read_text(encoding="utf-8") if given.out.is_file() else ""
    kept = written[written.index(SWEEP) :] if SWEEP in written else ""
    write_text(given.out, "\n".join([*text, *(mixed_section(given.mixed) if given.mixed is not None else []), kept]))
    print(json.dumps([{**row.__dict__, "timing": row.timing.to_json()} for row in rows], indent=1))


if __name__ == "__main__":
    main()
