"""Running a file exactly as it is written: what it says, whatever the processor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx

if TYPE_CHECKING:
    import onnxruntime as ort


def as_written(model: onnx.ModelProto | Path, threads: int = 0) -> ort.InferenceSession:
    """A session of ONNX Runtime on the CPU that computes every node of the file by itself, pairs of Q and DQ in float32.

    With graph optimization, pairs become integer layers, whose sums saturate on x86 without VNNI: then the answers are those
    of the processor and not of the file. ``threads=0`` means all cores. Raises ONNX Runtime's own exceptions.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what fails is raised
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
