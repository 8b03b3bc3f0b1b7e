"""Two small networks as (ONNX model, graph), made by hand so that latency tests need neither torch nor a tracer."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pydeploy.graph import Extent, Graph, Group, Op, Slice


class _Net:
    def __init__(self, size: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.size = size
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.params: dict[str, tuple[int, ...]] = {}

    def param(self, name: str, *shape: int, real: bool = True) -> str:
        array = self.rng.normal(0, 0.5, shape).astype(np.float32)
        self.tensors.append(numpy_helper.from_array(array, name))
        if real:
            self.params[name] = shape
        return name

    def const(self, name: str, values: list[int]) -> str:
        self.tensors.append(numpy_helper.from_array(np.asarray(values, np.int64), name))
        return name

    def conv(self, name: str, source: str, cin: int, cout: int, k: int = 1, group: int = 1, stride: int = 1) -> str:
        weight = self.param(f"{name}.weight", cout, cin // group, k, k)
        # A folded bias has a name that no state_dict knows.
        bias = self.param(f"{name}_folded", cout, real=False)
        self.add(
            "Conv", [source, weight, bias], name, name=name, kernel_shape=[k, k], pads=[k // 2] * 4, group=group,
            strides=[stride, stride],
        )  # fmt: skip
        return name

    def add(self, kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], **{"name": f"/{output}", **attributes}))
        return output

    def model(self, output: str, classes: int) -> onnx.ModelProto:
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, self.size, self.size])
        result = helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, classes])
        graph = helper.make_graph(self.nodes, "net", [image], [result], self.tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
        model.ir_version = 10
        onnx.checker.check_model(model, full_check=True)
        return model


def residual(a: int = 16, b: int = 16, size: int = 8, seed: int = 0) -> tuple[onnx.ModelProto, Graph]:
    """stem -> (conv, conv) + stem -> pool -> reshape -> Gemm; group 'a' is the stem and the block's end."""
    net = _Net(size, seed)
    net.conv("stem", "image", 3, a, 3)
    net.add("Relu", ["stem"], "r0")
    net.conv("conv1", "r0", a, b, 3)
    net.add("Relu", ["conv1"], "r1")
    net.conv("conv2", "r1", b, a, 3)
    net.add("Add", ["conv2", "r0"], "sum")
    net.add("Relu", ["sum"], "r2")
    net.add("GlobalAveragePool", ["r2"], "pool")
    net.add("Reshape", ["pool", net.const("flat", [1, a])], "features")
    weight, bias = net.param("fc.weight", 10, a), net.param("fc.bias", 10)
    net.add("Gemm", ["features", weight, bias], "logits", name="fc", transB=1)
    groups = (
        Group("a", a, (Slice("stem.weight", 0), Slice("conv1.weight", 1), Slice("conv2.weight", 0),
                       Slice("fc.weight", 1))),
        Group("b", b, (Slice("conv1.weight", 0), Slice("conv2.weight", 1))),
        Group("classes", 10, (Slice("fc.weight", 0), Slice("fc.bias", 0)), frozen="output of the model"),
    )  # fmt: skip
    wa, wb = Extent(0, (("a", 1),)), Extent(0, (("b", 1),))
    ops = (
        Op("stem", "conv", "stem.weight", Extent(3), wa, size, size, (3, 3), tail="relu"),
        Op("conv1", "conv", "conv1.weight", wa, wb, size, size, (3, 3), tail="relu"),
        Op("conv2", "conv", "conv2.weight", wb, wa, size, size, (3, 3), tail="add+relu"),
        Op("fc", "linear", "fc.weight", wa, Extent(10), 1, 1),
    )
    return net.model("logits", 10), Graph(groups, ops, net.params, 0, ((1, 3, size, size),))


def squeeze_excite(e: int = 12, s: int = 4, p: int = 6, seed: int = 1) -> tuple[onnx.ModelProto, Graph]:
    """stem -> depthwise -> squeeze-excite -> scale -> shuffle -> 1x1 -> flatten (16 positions) -> MatMul + Add."""
    net = _Net(4, seed)
    net.conv("stem", "image", 3, e, 3)
    net.add("Relu", ["stem"], "r0")
    net.conv("dw", "r0", e, e, 3, group=e)
    net.add("GlobalAveragePool", ["dw"], "pool")
    net.conv("squeeze", "pool", e, s)
    net.add("Relu", ["squeeze"], "r1")
    net.conv("excite", "r1", s, e)
    net.add("Sigmoid", ["excite"], "gate")
    net.add("Expand", ["gate", net.const("full", [1, e, 4, 4])], "spread")
    net.add("Mul", ["dw", "spread"], "gated")
    net.add("Mul", ["gated", net.param("scale", 1, e, 1, 1, real=False)], "scaled")
    net.add("Reshape", ["scaled", net.const("split", [1, 1, e, 4, 4])], "five")
    net.add("Reshape", ["five", net.const("joined", [1, e, 4, 4])], "four")
    net.conv("project", "four", e, p)
    net.add("Reshape", ["project", net.const("flat", [0, -1])], "features")
    net.params["fc.weight"] = (5, p * 16)
    net.add("MatMul", ["features", net.param("fc.weight", p * 16, 5, real=False)], "product", name="fc")
    net.add("Add", ["product", net.param("fc.bias", 5)], "logits")
    groups = (
        Group("e", e, (Slice("stem.weight", 0), Slice("dw.weight", 0), Slice("squeeze.weight", 1),
                       Slice("excite.weight", 0), Slice("project.weight", 1))),
        Group("s", s, (Slice("squeeze.weight", 0), Slice("excite.weight", 1))),
        Group("p", p, (Slice("project.weight", 0), Slice("fc.weight", 1, 0, 16, 16))),
    )  # fmt: skip
    we, ws, wp = (Extent(0, ((name, 1),)) for name in "esp")
    ops = (
        Op("stem", "conv", "stem.weight", Extent(3), we, 4, 4, (3, 3), tail="relu"),
        Op("dw", "conv", "dw.weight", we, we, 4, 4, (3, 3), groups=e, depthwise=True),
        Op("squeeze", "conv", "squeeze.weight", we, ws, 1, 1, tail="relu"),
        Op("excite", "conv", "excite.weight", ws, we, 1, 1, tail="sigmoid+mul"),
        Op("project", "conv", "project.weight", we, wp, 4, 4),
        Op("fc", "linear", "fc.weight", Extent(0, (("p", 16),)), Extent(5), 1, 1),
    )
    return net.model("logits", 5), Graph(groups, ops, net.params, 0, ((1, 3, 4, 4),))


NETS = {"residual": residual, "squeeze_excite": squeeze_excite}
