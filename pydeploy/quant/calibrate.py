"""Run a float model on representative samples and keep the interval of values of each tensor to be quantised.

The tensors are made extra outputs of an ONNX Runtime session on the CPU; every batch is counted into one histogram per
tensor and forgotten. Histograms and the hash of the samples do not depend on the order or the batch size.

ONNX Runtime does not compute a sample identically in every batch size: sums may differ in the last bit. `Ranges` from
different batch sizes therefore agree to float32 precision, not to the bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from pydeploy import _core
from pydeploy.backends.base import Feeds
from pydeploy.errors import DataError, nearest
from pydeploy.quant.model import model_hash, prepare, read_float_model
from pydeploy.quant.observe import Ranges, check_observer, observe
from pydeploy.quant.placement import STYLES, plan, style_named


def calibrate(
    onnx_path: Path,
    batches: Iterable[Feeds],
    *,
    observer: str = "entropy",
    style: str | None = None,
    tensors: Sequence[str] | None = None,
    threads: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Ranges:
    """The range of every tensor that `quantize` needs, by the named observer.

    `batches` yields arrays by input name, the samples along the first dimension; a model with a static batch takes
    batches of exactly that size. Without `style` the result serves every style; with one, thresholds suit its
    activation type as well. `tensors` measures these instead. ``threads=0`` means all cores; `progress` is called
    with the number of samples seen so far.
    Raises `DataError` where there are no samples, they do not fit the model, or a tensor holds NaN or infinity.
    """
    onnx_path = Path(onnx_path)
    check_observer(observer)
    model = read_float_model(onnx_path)
    graph = prepare(model)
    names = _known(graph, tensors) if tensors is not None else measured_tensors(graph, style)
    session, taps = _tapped_session(graph, model, names, threads)
    histograms = {name: _core.Histogram() for name in names}
    samples: list[bytes] = []
    for feeds in batches:
        _check_batch(feeds, session, onnx_path)
        samples.extend(_sample_digests(feeds))
        values = dict(zip(taps, session.run(taps, dict(feeds)) if taps else [], strict=True))
        for name in names:
            _count(histograms[name], values[name] if name in values else feeds[name], name, threads)
        if progress is not None:
            progress(len(samples))
    if not samples:
        raise DataError("the calibration set is empty; give at least one batch, better 500 samples or more")
    unsigned = style is not None and style_named(style).scheme == "asymmetric"
    found = {name: observe(histogram, observer, unsigned=unsigned) for name, histogram in histograms.items()}
    data = hashlib.sha256(b"".join(sorted(samples))).hexdigest()
    return Ranges(found, observer, model_hash(onnx_path), data, len(samples), unsigned)


def measured_tensors(graph: gs.Graph, style: str | None = None) -> tuple[str, ...]:
    """Tensors whose values decide the scales of the style (of all styles: None), in graph order."""
    styles = STYLES.values() if style is None else [style_named(style)]
    # No layer is too small here: `quantize` may be asked for fewer channels than the style's own limit.
    wanted = {
        name for rules in styles for sources in plan(graph, rules, min_channels=1).sources.values() for name in sources
    }
    return tuple(name for name in _tensor_names(graph) if name in wanted)


def _tensor_names(graph: gs.Graph) -> list[str]:
    return [tensor.name for tensor in graph.inputs] + [t.name for node in graph.nodes for t in node.outputs]


def _known(graph: gs.Graph, tensors: Sequence[str]) -> tuple[str, ...]:
    known = set(_tensor_names(graph))
    for name in tensors:
        if name not in known:
            raise DataError(f"the model has no tensor '{name}'{nearest(name, known)}")
    return tuple(dict.fromkeys(tensors))


def _tapped_session(
    graph: gs.Graph, model: onnx.ModelProto, names: Sequence[str], threads: int
) -> tuple[Any, list[str]]:
    """A session of the float model with `names` as outputs, and those of them that are not its inputs."""
    import onnxruntime as ort

    inputs = {tensor.name for tensor in graph.inputs}
    taps = [name for name in names if name not in inputs]
    by_name = graph.tensors()
    graph.outputs = [by_name[name] for name in taps] or graph.outputs
    for tensor in graph.outputs:
        tensor.dtype = tensor.dtype or np.float32
    graph.cleanup(remove_unused_graph_inputs=False)
    tapped = gs.export_onnx(graph)
    tapped.ir_version = model.ir_version
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(tapped.SerializeToString(), options, providers=["CPUExecutionProvider"]), taps


def _check_batch(feeds: Feeds, session: Any, onnx_path: Path) -> None:
    inputs = session.get_inputs()
    if set(feeds) != {spec.name for spec in inputs}:
        raise DataError(f"{onnx_path} takes inputs {[spec.name for spec in inputs]}, the batch has {sorted(feeds)}")
    for spec in inputs:
        array, shape = feeds[spec.name], spec.shape
        kind = spec.type.removeprefix("tensor(").removesuffix(")").replace("float16", "half")
        fits = len(array.shape) == len(shape) and all(
            not isinstance(want, int) or want == have for want, have in zip(shape, array.shape, strict=True)
        )
        if not fits or _TYPES.get(kind, array.dtype.name) != array.dtype.name:
            raise DataError(
                f"input '{spec.name}' of {onnx_path} is {kind}{shape}, the batch has "
                f"{array.dtype.name}{list(array.shape)}; arrange the samples in batches of exactly this shape"
            )


_TYPES = {"float": "float32", "half": "float16", "double": "float64"}


def _sample_digests(feeds: Feeds) -> Iterator[bytes]:
    """One hash per sample over all inputs, in name order."""
    counts = {name: array.shape[0] if array.ndim else 0 for name, array in feeds.items()}
    if len(set(counts.values())) != 1:
        raise DataError(f"the inputs of one batch hold different numbers of samples: {counts}")
    arrays = [np.ascontiguousarray(feeds[name]) for name in sorted(feeds)]
    for index in range(next(iter(counts.values()))):
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(array[index].tobytes())
        yield digest.digest()


def _count(histogram: _core.Histogram, values: NDArray[Any], name: str, threads: int) -> None:
    histogram.update(np.ascontiguousarray(values), threads)
    if histogram.nan_count or histogram.inf_count:
        raise DataError(
            f"tensor '{name}' holds {histogram.nan_count} NaN and {histogram.inf_count} infinite values; "
            "check the samples and the weights"
        )
