"""Run a float model on representative samples and keep the interval of values of each tensor to be quantized.

The tensors are made extra outputs of an ONNX Runtime session on the CPU. Samples run one at a time (`tapped`); each is
counted into one histogram per tensor and forgotten (`counts`). The result does not depend, not even in the last bit, on
the order of the samples or on the batches they come in, unless the graph itself insists on a batch larger than one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs

from pydeploy.backends.base import Feeds
from pydeploy.errors import DataError, Mismatch, nearest
from pydeploy.onnxfile.load import Loaded, files_hash, read_float_model
from pydeploy.onnxfile.prepare import prepare
from pydeploy.quant.correction import corrected_inputs
from pydeploy.quant.counts import Counts, sample_hash
from pydeploy.quant.observe import OBSERVERS, Ranges, observe
from pydeploy.quant.placement import plan
from pydeploy.quant.styles import STYLES, style_named
from pydeploy.quant.tapped import Tapped

FEW = 32
"""Fewer samples than this are worth a warning; NVIDIA and ONNX Runtime recommend hundreds."""
SAVE_SECONDS = 30.0
log = logging.getLogger(__name__)


def calibrate(
    onnx_path: Path,
    batches: Iterable[Feeds],
    *,
    observer: str = "mse",
    style: str | None = None,
    tensors: Sequence[str] | None = None,
    every: bool = False,
    threads: int = 0,
    progress: Callable[[int], None] | None = None,
    resume: Path | None = None,
    key: str = "",
    few: int = FEW,
) -> Ranges:
    """The range of every tensor that `quantize` needs, by the named observer.

    `batches` yields arrays by input name, the samples along the first dimension, in batches of any size. Without
    `style` the result serves every style; with one, thresholds suit its activation type as well. `tensors` measures
    these instead, `every` all float tensors (for a TensorRT calibration cache). ``threads=0`` means all cores;
    `progress` is called with the number of samples seen so far.

    `resume` names a file that keeps the counts: after an interruption the samples it holds are not run again, and
    neither are they for another observer. It is used for the same model and the same `key`, which stands for the
    calibration set (`Manifest.key`), and begun anew otherwise. Fewer than `few` samples are warned of.

    Raises `DataError` where there are no samples, they do not fit the model, or a tensor holds NaN or infinity;
    `Mismatch` where `resume` holds samples that `batches` lacks.
    """
    onnx_path = Path(onnx_path)
    OBSERVERS.check(observer)
    source = read_float_model(onnx_path)
    with ThreadPoolExecutor(1) as other:
        digest = other.submit(files_hash, source.files)  # while the session is made
        tapped, by_channel = _tapped(source, tensors, every, style, threads)
        del source
        model = digest.result()
    names = tapped.names
    known = (model, key, names, by_channel)
    counts = Counts.resume(resume, *known) if resume else Counts.empty(*known)
    _count_all(counts, tapped, batches, threads, progress, resume)
    if not counts.samples:
        raise DataError("the calibration set is empty; give at least one batch, better 500 samples or more")
    if len(counts.samples) < few:
        log.warning("only %d calibration samples; the ranges of rare values need hundreds", len(counts.samples))
    unsigned = style is not None and style_named(style).scheme != "symmetric"
    with ThreadPoolExecutor(threads or None) as pool:  # thresholds are found outside of Python's lock
        found = pool.map(lambda name: observe(counts.tensors[name], observer, unsigned=unsigned), names)
        ranges = dict(zip(names, found, strict=True))
    means = {name: counts.tensors[name].sums.mean(len(counts.samples)) for name in names if name in by_channel}
    return Ranges(ranges, observer, model, counts.samples_hash(), len(counts.samples), unsigned, means)


def _tapped(
    source: Loaded, tensors: Sequence[str] | None, every: bool, style: str | None, threads: int
) -> tuple[Tapped, frozenset[str]]:
    """A session that gives the values of the tensors that `calibrate` was asked for; those whose channels count."""
    graph = prepare(source)
    if every:
        names = tuple(name for name in _tensor_names(graph) if graph.tensors()[name].dtype == np.float32)
    else:
        names = _known(graph, tensors) if tensors is not None else measured_tensors(graph, style)
    by_channel = corrected_inputs(graph.nodes) & set(names)
    return Tapped(graph, names, source.model.ir_version, threads, source.files[0]), by_channel


def _count_all(
    counts: Counts,
    tapped: Tapped,
    batches: Iterable[Feeds],
    threads: int,
    progress: Callable[[int], None] | None,
    resume: Path | None,
) -> None:
    """Count every sample that `counts` does not hold yet."""
    known = counts.remaining()
    begun, saved, seen = len(counts.samples), time.monotonic(), 0
    for feeds in batches:
        rows, hashes = [], []
        for row in range(tapped.count(feeds)):
            digest = sample_hash([feeds[name][row] if feeds[name].ndim else feeds[name] for name in sorted(feeds)])
            if known[digest]:
                known[digest] -= 1
                seen += 1
            else:
                rows.append(row)
                hashes.append(digest)
        for digest, values in zip(hashes, tapped.run(feeds, rows), strict=True):
            counts.add(digest, values, threads)
            seen += 1
            if progress is not None:
                progress(seen)
        if progress is not None and not rows:
            progress(seen)
        # Only here are all tensors and the list of samples sure to agree, whatever interrupts.
        if resume and time.monotonic() - saved > SAVE_SECONDS:
            counts.save(resume)
            saved = time.monotonic()
    if left := known.total():
        raise Mismatch(f"{resume} holds {left} samples that are not in this calibration set; delete it to start anew")
    if resume and len(counts.samples) > begun:
        counts.save(resume)


def measured_tensors(graph: gs.Graph, style: str | None = None) -> tuple[str, ...]:
    """Tensors whose values decide the scales and biases of the style (of all styles: None), in graph order."""
    styles = STYLES.values() if style is None else [style_named(style)]
    # No layer is too small here: `quantize` may be asked for fewer channels than the style's own limit.
    wanted: set[str] = set()
    for rules in styles:
        placement = plan(graph, rules, min_channels=1)
        wanted |= corrected_inputs(placement.nodes).union(*placement.sources.values())
    return tuple(name for name in _tensor_names(graph) if name in wanted)


def _tensor_names(graph: gs.Graph) -> list[str]:
    return [tensor.name for tensor in graph.inputs] + [t.name for node in graph.nodes for t in node.outputs]


def _known(graph: gs.Graph, tensors: Sequence[str]) -> tuple[str, ...]:
    known = set(_tensor_names(graph))
    for name in tensors:
        if name not in known:
            raise DataError(f"the model has no tensor '{name}'{nearest(name, known)}")
    return tuple(dict.fromkeys(tensors))
