"""Export: layers named like the model's, outputs as PyTorch's, nothing half-written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from pydeploy.errors import DataError, Mismatch, TraceError
from pydeploy.export import export
from pydeploy.plan import Plan
from pydeploy.prune.structure.trace import trace
from pydeploy.prune.surgery.apply import apply
from zoo import SHAPE, build

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.parametrize("name", ["plain", "residual", "depthwise_se"])
def test_layers_keep_their_names_and_outputs(name: str, tmp_path: Path) -> None:
    model = build(name)
    path = export(model, torch.zeros(SHAPE), tmp_path / "m.onnx", batch=2, input_names=["x"], output_names=["y"])
    graph, proto = trace(model, torch.zeros(SHAPE)), onnx.load(str(path))
    nodes = {node.name: node for node in proto.graph.node}
    weights = {w.name: tuple(w.dims) for w in proto.graph.initializer}
    for op in graph.ops:
        assert op.name in nodes
        assert op.weight in nodes[op.name].input
        assert weights[op.weight] == graph.params[op.weight]
    x = np.random.default_rng(0).standard_normal((2, *SHAPE[1:])).astype(np.float32)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    got = session.run(["y"], {"x": x})[0]
    with torch.no_grad():
        np.testing.assert_allclose(got, model(torch.from_numpy(x)).numpy(), rtol=1e-3, atol=1e-4)


def test_a_cut_model_exports(tmp_path: Path) -> None:
    model = build("residual")
    graph = trace(model, torch.zeros(SHAPE))
    small = apply(model, graph, Plan({"a.0": (0, 3), "stem.0": (1, 2, 7)}, graph.fingerprint))
    proto = onnx.load(str(export(small, torch.zeros(SHAPE), tmp_path / "m.onnx")))
    shapes = {w.name: tuple(w.dims) for w in proto.graph.initializer}
    assert shapes["a.0.weight"] == (2, 3, 3, 3)


def test_a_layer_that_runs_twice_gets_two_names(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(torch.relu(self.a(x)))

    proto = onnx.load(str(export(Twice(), torch.zeros(SHAPE), tmp_path / "m.onnx")))
    assert [n.name for n in proto.graph.node if n.op_type == "Conv"] == ["a", "a:2"]
    assert [op.name for op in trace(Twice(), torch.zeros(SHAPE)).ops] == ["a", "a:2"]


def test_the_model_is_left_alone(tmp_path: Path) -> None:
    model = build("residual").train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    export(model, torch.zeros(SHAPE), tmp_path / "m.onnx")
    assert model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_nan_is_refused(tmp_path: Path) -> None:
    model = build("residual")
    model.fc.weight.data[0, 0] = float("nan")
    with pytest.raises(DataError, match=r"'fc.weight' holds NaN"):
        export(model, torch.zeros(SHAPE), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_that_computes_something_else_is_not_kept(tmp_path: Path) -> None:
    class Noisy(nn.Module):
        """Adds other random numbers at every call."""

        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x) + torch.rand_like(x)

    with pytest.raises(Mismatch, match="differs from PyTorch by"):
        export(Noisy(), torch.zeros(SHAPE), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_model_that_torch_cannot_export_is_one_clear_error(tmp_path: Path) -> None:
    class Choosy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x) if x.sum() > 0 else x

    with pytest.raises(TraceError, match="torch cannot export the model"):
        export(Choosy(), torch.zeros(SHAPE), tmp_path / "m.onnx")


def test_no_path_of_this_machine_is_in_the_file(tmp_path: Path) -> None:
    path = export(build("plain"), torch.zeros(SHAPE), tmp_path / "m.onnx")
    assert str(Path(__file__).parent).encode() not in path.read_bytes()
