"""Where in the network two engines part: both files are built once more with their inner tensors as outputs.

Only tensors that both files have, in one shape, are compared, at the ends of fused layers (behind an activation or addition), so that
the runtimes still fuse most of what they fuse without the extra outputs. Where a Q/DQ pair follows, its restored
values are compared: what the next layer reads.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from pydeploy.backends.base import Backend, Feeds
from pydeploy.errors import DataError, Mismatch
from pydeploy.profiling.compare_outputs import Difference, Sums

_FUSED = frozenset({"Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Sigmoid", "HardSigmoid", "HardSwish", "Gelu", "Tanh", "Add", "Mul",
                    "BatchNormalization"})  # fmt: skip
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_PASSES = frozenset({"Cast", "QuantizeLinear", "DequantizeLinear", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze",
                     "Transpose", "Constant"})  # fmt: skip


@dataclass(frozen=True, slots=True)
class LayerDifference:
    """How far apart the values behind one layer are."""

    layer: str
    """The layer with weights that the tensor is fused into, or the node that computes it; names of the reference."""
    tensor: str
    relative_l2: float
    max_abs: float

    def exceeds(self, tolerance: float) -> bool:
        """Whether the relative difference is above `tolerance`, or NaN."""
        return not self.relative_l2 <= tolerance

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def layer_differences(
    reference: tuple[Backend, Path], other: tuple[Backend, Path], feeds: Iterable[Feeds]
) -> tuple[LayerDifference, ...]:
    """Differences behind every layer that both ONNX files have, in execution order of the reference.

    Each side is a backend and the file to build for it. Raises `Mismatch` when the files share no inner tensor,
    `DataError` without feeds or where a file cannot be built.
    """
    samples = list(feeds)
    if not samples:
        raise DataError("there is nothing to compare: no feeds were given")
    models = [_inferred(path) for _, path in (reference, other)]
    first, second = ({v.name: v.type.tensor_type.shape for v in [*m.graph.value_info, *m.graph.output]} for m in models)
    shared = [(layer, tensor) for layer, tensor in ends(models[0].graph)
              if tensor in first and tensor in second and first[tensor] == second[tensor]]  # fmt: skip
    if not shared:
        raise Mismatch(
            f"{reference[1]} and {other[1]} share no tensor of one shape inside; compare files made from the same exported model"
        )
    names = [tensor for _, tensor in shared]
    runs = [_run(backend, model, _restored(model.graph, names), samples)
            for (backend, _), model in zip((reference, other), models, strict=True)]  # fmt: skip
    found = []
    for layer, tensor in shared:
        sums = Sums()
        for one, two in zip(*runs, strict=True):
            sums = sums.plus(one[tensor], two[tensor])
        difference: Difference = sums.difference(tensor)
        found.append(LayerDifference(layer, tensor, difference.relative_l2, difference.max_abs))
    return tuple(found)


def first_divergence(differences: Sequence[LayerDifference], tolerance: float) -> LayerDifference | None:
    """The first layer, in execution order, whose relative difference exceeds `tolerance`."""
    return next((difference for difference in differences if difference.exceeds(tolerance)), None)


def _inferred(path: Path) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True)
    except Exception as error:  # protobuf's parse errors share no base with the file system's
        raise DataError(f"{path} is not a readable ONNX file ({error}); export the model again") from None


def ends(graph: onnx.GraphProto) -> list[tuple[str, str]]:
    """(layer, tensor) behind each layer and what is usually fused into it; tensors that only move values are left out."""
    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    found = []
    owner: dict[str, tuple[int, str]] = {}
    for place, node in enumerate(graph.node):
        before = [owner[name] for name in node.input if name in owner]
        # An addition belongs to the later of its layers.
        mine = max(before) if node.op_type in _FUSED and before else (place, node.name or node.output[0])
        if node.op_type in _WEIGHTED or node.op_type in _FUSED:
            owner.update(dict.fromkeys(node.output, mine))
        following = readers.get(node.output[0], [])
        # A value with one reader that is fused into its layer is not computed on its own.
        if node.op_type not in _PASSES and not (len(following) == 1 and following[0] in _FUSED):
            found.append((mine[1], node.output[0]))
    return found


def _restored(graph: onnx.GraphProto, names: Sequence[str]) -> dict[str, str]:
    """For each tensor, the output of the Q/DQ pair that reads it, or itself."""
    quantized = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "QuantizeLinear"}
    restored = {quantized[n.input[0]]: n.output[0] for n in graph.node
                if n.op_type == "DequantizeLinear" and n.input[0] in quantized}  # fmt: skip
    return {name: restored.get(name, name) for name in names}


def _run(
    backend: Backend, model: onnx.ModelProto, taps: dict[str, str], samples: Sequence[Feeds]
) -> list[dict[str, Any]]:
    """Values of the tapped tensors for every sample, by their name in `taps`."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    known = {value.name: value for value in [*model.graph.value_info, *model.graph.output]}
    outputs = {value.name for value in model.graph.output}
    tapped.graph.output.extend(
        known[name] for name in dict.fromkeys(taps.values()) if name in known and name not in outputs
    )
    with tempfile.TemporaryDirectory(prefix="pydeploy-") as folder:
        source = Path(folder) / "tapped.onnx"
        onnx.save(tapped, source)
        engine = backend.build(source, Path(folder) / "tapped.engine")
        with backend.open(engine) as session:
            results = [session.run(feeds) for feeds in samples]
    return [{name: result[place].copy() for name, place in taps.items()} for result in results]
