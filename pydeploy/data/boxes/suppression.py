"""The run-time part of an SSD inside its file: scores as shares, boxes decoded, non-maximum suppression by ONNX's operator.

ONNX Runtime and OpenVINO run such files, TensorRT's parser has an import for the operator. What is told is what
`pydeploy.data.boxes.detections` tells of raw outputs, but for the last cut to the best `most` boxes of a picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pydeploy.data.boxes.detections import Cleaning
from pydeploy.data.boxes.priors import CENTRE, SIZE, Priors
from pydeploy.errors import Mismatch
from pydeploy.files import replacing
from pydeploy.onnxfile.read import load_whole

OUTPUTS = ("decoded", "shares", "selected")


def with_suppression(
    path: Path, out: Path, priors: Priors, cleaning: Cleaning, names: tuple[str, str] = ("scores", "boxes")
) -> Path:
    """A copy of an SSD's file that ends at three other outputs.

    ``decoded`` ``(N, P, 4)``: left, top, right, bottom as shares of the picture; ``shares`` ``(N, classes, P)``: scores without
    the background; ``selected`` ``(K, 3)`` int64: picture, class and prior of each box that stays, best first in each class.
    Raises `Mismatch` where the file has no outputs `names` of an SSD with such priors.
    """
    model = load_whole(path)
    shapes = {one.name: [axis.dim_value for axis in one.type.tensor_type.shape.dim] for one in model.graph.output}
    scores, boxes = (shapes.get(name, []) for name in names)
    if len(scores) != 3 or len(boxes) != 3 or boxes[2] != 4 or scores[1] != boxes[1]:
        raise Mismatch(
            f"{path} has the outputs {shapes}; expected '{names[0]}' (N, P, classes) and '{names[1]}' (N, P, 4)"
        )
    batch, count, classes = scores
    graph, own = model.graph, priors.of(count).boxes
    graph.initializer.extend(_constants(own, cleaning))
    graph.node.extend(_nodes(*names))
    del graph.output[:]
    for name, shape, kind in zip(OUTPUTS, ([batch, count, 4], [batch, classes - 1, count], ["boxes", 3]),
                                 (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT64), strict=True):  # fmt: skip
        graph.output.append(helper.make_tensor_value_info(name, kind, shape))
    onnx.checker.check_model(model, full_check=True)
    with replacing(out) as partial:
        onnx.save(model, str(partial))
    return out


def _constants(priors: NDArray[np.float32], cleaning: Cleaning) -> list[TensorProto]:
    values = {
        "ssd.centre": priors[:, :2], "ssd.size": priors[:, 2:], "ssd.moved": CENTRE * priors[:, 2:],
        "ssd.grown": np.float32(SIZE), "ssd.half": np.float32(0.5), "ssd.zero": np.float32(0), "ssd.one": np.float32(1),
        "ssd.first": np.array([0], np.int64), "ssd.second": np.array([1], np.int64), "ssd.middle": np.array([2], np.int64),
        "ssd.end": np.array([2**31 - 1], np.int64), "ssd.last": np.array([2], np.int64),
        "ssd.most": np.array([cleaning.most], np.int64), "ssd.iou": np.array([cleaning.iou], np.float32),
        "ssd.score": np.array([cleaning.score], np.float32),
    }  # fmt: skip
    return [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]


def _nodes(scores: str, boxes: str) -> list[onnx.NodeProto]:
    """`pydeploy.data.boxes.priors.decode`, softmax and suppression, in opset 13's operators."""

    def node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(kind, [f"ssd.{name[1:]}" if name[0] == "." else name for name in inputs.split()],
                                [output if output in OUTPUTS else f"ssd.{output}"], name=f"ssd.{output}", **attributes)  # fmt: skip

    return [
        node("Slice", f"{boxes} .first .middle .last", "offsets"),
        node("Slice", f"{boxes} .middle .end .last", "logarithms"),
        node("Mul", ".offsets .moved", "away"),
        node("Add", ".away .centre", "centres"),
        node("Mul", ".logarithms .grown", "powers"),
        node("Exp", ".powers", "factors"),
        node("Mul", ".factors .size", "sizes"),
        node("Mul", ".sizes .half", "halves"),
        node("Sub", ".centres .halves", "low"),
        node("Add", ".centres .halves", "high"),
        node("Concat", ".low .high", "corners", axis=-1),
        node("Clip", ".corners .zero .one", "decoded"),
        node("Softmax", scores, "softmax", axis=-1),
        node("Slice", ".softmax .second .end .last", "objects"),
        node("Transpose", ".objects", "shares", perm=[0, 2, 1]),
        node("NonMaxSuppression", "decoded shares .most .iou .score", "selected", center_point_box=0),
    ]
