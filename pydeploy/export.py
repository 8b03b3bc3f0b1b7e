"""PyTorch model → ONNX file that every other stage can follow by name.

* Batch norm is folded into the convolution before it (torch's own exporter does that).
* The node of every layer is named like the layer's operator in the graph (``layer1.0.conv1``; a second call of the
  same layer ``layer1.0.conv1:2``), its weight like the parameter. Latency tables and reports rely on it.
* Masks (`pydeploy.prune.surgery.masks`) are folded into the weights.
* The batch is static: latency and calibration are for one batch size.
* The file is run on ONNX Runtime and compared with the PyTorch model before it is put in place.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from pydeploy.errors import DataError, Mismatch, TraceError
from pydeploy.files import replacing
from pydeploy.prune.surgery.masks import unmasked

OPSET = 20
"""Newest operator set that ONNX Runtime 1.20, OpenVINO 2025 and TensorRT 10 all read."""

LAYER_NODES: Mapping[str, int] = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}
"""Node types that implement a layer, and which of their inputs is the weight."""


def export(model: nn.Module, example: Tensor | tuple[Tensor, ...], path: Path | str, *, batch: int = 1,
           input_names: Sequence[str] = ("input",), output_names: Sequence[str] = ("output",),
           tolerance: float = 1e-3) -> Path:  # fmt: skip
    """Write `model` as ONNX at `path`; `example` holds the forward's arguments at batch 1.

    Raises `DataError` when weights hold NaN, `Mismatch` when ONNX Runtime's outputs differ from PyTorch's by more than
    `tolerance` of the largest output.
    """
    path = Path(path)
    singles = (example,) if isinstance(example, Tensor) else tuple(example)
    inputs = tuple(t.expand(batch, *t.shape[1:]).contiguous() if t.shape[0] == 1 else t for t in singles)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DataError(f"'{name}' holds NaN or infinite values; export a model from a sound training run")
    frozen = unmasked(model).eval().to("cpu", torch.float32)
    program = _export(frozen, inputs, input_names, output_names)
    named(program)
    with replacing(path) as partial:
        onnx.save(program, str(partial))
        check_same(frozen, inputs, partial, tolerance)
    return path


def _export(
    model: nn.Module, inputs: tuple[Tensor, ...], input_names: Sequence[str], output_names: Sequence[str]
) -> onnx.ModelProto:
    try:
        with _quiet():
            program = torch.onnx.export(model, inputs, dynamo=True, opset_version=OPSET, verbose=False,
                                        input_names=list(input_names), output_names=list(output_names))  # fmt: skip
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise TraceError(f"torch cannot export the model: {reason[0]}; its forward may branch on values") from error
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    # The exporter notes source paths of this machine in every node; they make files differ from place to place.
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    return proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about its own internals and prints progress; neither is of use to our users."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def named(program: onnx.ModelProto) -> None:
    """Rename every layer's node to its operator's name, in place."""
    weights = {initializer.name for initializer in program.graph.initializer}
    seen: Counter[str] = Counter()
    for node in program.graph.node:
        slot = LAYER_NODES.get(node.op_type)
        if slot is None or len(node.input) <= slot or node.input[slot] not in weights:
            continue
        layer = node.input[slot].removesuffix(".weight")
        seen[layer] += 1
        node.name = layer if seen[layer] == 1 else f"{layer}:{seen[layer]}"


def check_same(model: nn.Module, inputs: tuple[Tensor, ...], path: Path, tolerance: float) -> None:
    """Raise `Mismatch` unless ONNX Runtime computes from `path` what `model` computes, on random inputs."""
    import onnxruntime

    generator = torch.Generator().manual_seed(0)
    samples = tuple(torch.randn(t.shape, generator=generator) if t.is_floating_point() else t for t in inputs)
    with torch.no_grad():
        result = model(*samples)
    expected = [t.numpy() for t in ([result] if isinstance(result, Tensor) else list(result))]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds = {spec.name: t.numpy() for spec, t in zip(session.get_inputs(), samples, strict=True)}
    for spec, want, got in zip(session.get_outputs(), expected, session.run(None, feeds), strict=True):
        scale = max(float(np.abs(want).max()), 1e-6)
        error = float(np.abs(want - got).max()) / scale if want.shape == got.shape else float("inf")
        if not error <= tolerance:
            raise Mismatch(
                f"output '{spec.name}' of the exported file differs from PyTorch by {error:.2g} of its largest value "
                f"(limit {tolerance:g}); the model's forward may depend on data or on training mode"
            )
