"""A float model that also hands out its inner tensors, run one sample at a time.

A runtime may add up the values of one sample differently in every batch size: the last bit differs, and with it a
threshold. So a sample always runs alone, whatever batch it came in. A larger batch written into the model's inputs is
changed to 1; where the graph needs the original one (a Reshape to it), whole batches run, filled up by repeating.

A run writes into the arrays of the one before: new ones for tens of MB a sample cost time, and twice the memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from pydeploy.backends.base import Feeds
from pydeploy.errors import DataError
from pydeploy.onnxfile.prepare import export_graph

Shape = tuple[Any, ...]
"""Numbers, and names of dimensions that are not fixed."""
Split = tuple[bytes, dict[str, NDArray[np.float32]]]
"""An ONNX file's content, and what it says lies elsewhere: the large weights by name."""
_LARGE = 1024
"""Values; smaller weights stay in the file."""


def count_samples(feeds: Feeds, inputs: Mapping[str, tuple[str, Shape]], source: Path) -> int:
    """Number of samples in a batch; raises `DataError` unless `inputs`, of the file `source`, take them. Scalars belong to all."""
    if set(feeds) != set(inputs):
        raise DataError(f"{source} takes inputs {sorted(inputs)}, the batch has {sorted(feeds)}")
    for name, (dtype, shape) in inputs.items():
        array = feeds[name]
        fits = array.ndim == len(shape) and all(
            not isinstance(want, int) or want == have for want, have in zip(shape[1:], array.shape[1:], strict=True)
        )
        if not fits or array.dtype != dtype:
            expected = ["N", *shape[1:]] if shape else []
            raise DataError(
                f"input '{name}' of {source} is {dtype}{expected} for N samples, the batch has "
                f"{array.dtype.name}{list(array.shape)}; give samples of this type and shape"
            )
    counts = {name: len(array) for name, array in feeds.items() if array.ndim}
    if len(set(counts.values())) != 1:
        raise DataError(f"the inputs of one batch hold different numbers of samples: {counts}")
    return next(iter(counts.values()), 1)


class Tapped:
    """The model `graph`, which is consumed, on ONNX Runtime, with the tensors `names` as its outputs.

    `source` is the file that errors name. ``threads=0`` means all cores.
    """

    def __init__(self, graph: gs.Graph, names: Sequence[str], ir_version: int, threads: int, source: Path) -> None:
        self.source = source
        self.inputs: dict[str, tuple[str, Shape]] = {
            tensor.name: (np.dtype(tensor.dtype).name, tuple(tensor.shape)) for tensor in graph.inputs
        }
        self.names = tuple(names)
        self._taps = [name for name in names if name not in self.inputs]
        by_name = graph.tensors()
        shapes = [by_name[name].shape for name in self._taps]
        graph.outputs = [by_name[name] for name in self._taps] or graph.outputs
        del by_name
        for tensor in graph.outputs:
            tensor.dtype = tensor.dtype or np.float32
        graph.cleanup(remove_unused_graph_inputs=False)
        self.batch = 1
        """Samples in one run."""
        written = {shape[0] for _, shape in self.inputs.values() if shape}
        batch = next(iter(written)) if len(written) == 1 else 1
        self._session: Any = None
        if isinstance(batch, int) and batch > 1:
            self._session = self._alone(_split(graph, ir_version, alone=True), batch, shapes, threads)
            self.batch = batch if self._session is None else 1
        if self._session is None:
            self._session = _open(_split(graph, ir_version), threads)
        self._arrays: dict[str, NDArray[Any]] = {}
        self._fed: list[tuple[int, ...]] = []
        """Shapes of the inputs that gave `_arrays`."""
        _empty(graph)

    def _alone(self, model: Split, batch: int, shapes: Sequence[Shape | None], threads: int) -> Any:
        """A session that takes single samples, or None where the graph needs its batch."""
        if any(not isinstance(size, int) for _, shape in self.inputs.values() for size in shape):
            return None
        zeros = {
            name: np.zeros((1, *shape[1:]) if shape else (), dtype) for name, (dtype, shape) in self.inputs.items()
        }
        try:
            session = _open(model, threads)
            found = session.run(self._taps, zeros) if self._taps else []
        except Exception:  # ONNX Runtime's own types; whatever it dislikes, the written batch works
            return None
        fits = all(
            shape is None or tuple(shape) == array.shape or ((1, *shape[1:]) == array.shape and shape[0] == batch)
            for shape, array in zip(shapes, found, strict=True)
        )
        return session if fits else None

    def count(self, feeds: Feeds) -> int:
        """Number of samples in a batch; raises `DataError` unless the model takes them."""
        return count_samples(feeds, self.inputs, self.source)

    def run(self, feeds: Feeds, rows: Sequence[int]) -> Iterator[Mapping[str, NDArray[Any]]]:
        """The tensors' values for each of the samples `rows` of a batch, valid until the next one is asked for."""
        for start in range(0, len(rows), self.batch):
            chosen = list(rows[start : start + self.batch])
            filled = [*chosen, *[chosen[-1]] * (self.batch - len(chosen))]
            part = {
                name: np.ascontiguousarray(array[filled]) if array.ndim else np.asarray(array)
                for name, array in feeds.items()
            }
            values = {**part, **self._inner(part)}
            for row in range(len(chosen)):
                # What has no batch dimension (computed from weights alone) belongs to every sample.
                yield {name: values[name][row : row + 1] if values[name].shape[:1] == (self.batch,) != (1,) else values[name]
                       for name in self.names}  # fmt: skip

    def _inner(self, part: Feeds) -> Mapping[str, NDArray[Any]]:
        """Values of the tensors behind the inputs."""
        if not self._taps:
            return {}
        fed = [array.shape for array in part.values()]
        if not self._arrays or fed != self._fed or not self._run_again(part):
            self._arrays = dict(zip(self._taps, self._session.run(self._taps, part), strict=True))
            self._fed = fed
        return self._arrays

    def _run_again(self, part: Feeds) -> bool:
        """Run into the same arrays; False where they do not fit, as shapes may depend on values."""
        binding = self._session.io_binding()
        for name, array in part.items():
            binding.bind_cpu_input(name, array)
        for name, array in self._arrays.items():
            if not (array.flags.c_contiguous and array.flags.writeable and array.size):
                return False
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
        except Exception:  # ONNX Runtime's own types; what else is wrong, the usual way of running will tell
            return False
        return True


def _open(model: Split, threads: int) -> Any:
    import onnxruntime as ort

    file, weights = model
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what fails is raised; `_alone` may fail and be no error
    # Threads that wait busily for the next run would take the processors from the counting in between.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    given = [ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for array in weights.values()]
    options.add_external_initializers(list(weights), given)
    return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def _split(graph: gs.Graph, ir_version: int, *, alone: bool = False) -> Split:
    """The graph as a file's content, with a batch of 1 where `alone`, and apart from it the large weights, not copied."""
    large = {name: tensor for name, tensor in graph.tensors().items() if isinstance(tensor, gs.Constant)
             and tensor.dtype == np.float32 and np.prod(tensor.shape) > _LARGE}  # fmt: skip
    weights = {name: tensor.values for name, tensor in large.items()}
    for tensor in large.values():
        tensor.values = np.empty(0, np.float32)
    model = export_graph(graph)
    for name, tensor in large.items():
        tensor.values = weights[name]
    model.ir_version = ir_version
    for stored in model.graph.initializer:
        if stored.name in weights:
            stored.ClearField("raw_data")
            stored.dims[:] = weights[stored.name].shape
            stored.data_location = onnx.TensorProto.EXTERNAL
            stored.external_data.add(key="location", value="memory")
    if alone:
        for value in model.graph.input:
            value.type.tensor_type.shape.dim[0].dim_value = 1
        del model.graph.value_info[:]
        for value in model.graph.output:
            value.type.tensor_type.ClearField("shape")
    return bytes(model.SerializeToString()), weights


def _empty(graph: gs.Graph) -> None:
    """Let go of the graph's own weights, whoever else holds it."""
    graph.nodes, graph.inputs, graph.outputs = [], [], []
