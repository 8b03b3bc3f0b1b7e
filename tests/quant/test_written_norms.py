"""Norms that a model writes out keep their statistics in float, and means of nearly nothing stay runnable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
import torch
from torch import Tensor, nn

from pydeploy.backends.base import open_backend
from pydeploy.export import export
from pydeploy.models.segdecnet import FeatureNorm
from pydeploy.quant.calibrate import calibrate
from pydeploy.quant.qdq import quantize


class Net(nn.Module):
    """Maps normed channel by channel; the last ones are read by a convolution, so they are integers, and by a mean."""

    def __init__(self, norm: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), norm
        self.head, self.last = nn.Linear(8, 4), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.norm(self.second(self.norm(self.first(x)).relu()))
        out: Tensor = self.head(maps.mean((2, 3))) + self.last(maps).amax((2, 3))
        return out


NORMS: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "feature norm": lambda: FeatureNorm(8),
    "std": lambda: lambda x: (x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + 1e-3),
    "var": lambda: lambda x: (x - x.mean((2, 3), keepdim=True)) * (x.var((2, 3), keepdim=True) + 1e-3).rsqrt(),
}


@pytest.mark.parametrize("name", NORMS)
def test_statistics_stay_float_and_engines_run(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model = Net(NORMS[name]()).eval()
    with torch.no_grad():  # means far above the spread: a rounded mean would drown the maps
        model.first.bias += 30
        model.second.bias += 30
    x = torch.randn(1, 3, 16, 16)
    export(model, x, tmp_path / "float.onnx")
    feeds = [{"input": torch.randn(1, 3, 16, 16).numpy()} for _ in range(4)]
    ranges = calibrate(tmp_path / "float.onnx", feeds, observer="minmax", style="onnxruntime", few=0)
    quantize(tmp_path / "float.onnx", ranges, tmp_path / "int8.onnx", style="onnxruntime")
    graph = gs.import_onnx(onnx.load(tmp_path / "int8.onnx"))
    statistics = [node for node in graph.nodes if node.op in ("GlobalAveragePool", "ReduceMean")
                  and any(reader.op == "Sub" for reader in node.outputs[0].outputs)]  # fmt: skip
    assert len(statistics) >= 2
    for node in statistics:
        assert "QuantizeLinear" not in {reader.op for reader in node.outputs[0].outputs}
    backend = open_backend("onnxruntime", precision="int8", threads=1)
    with backend.open(backend.build(tmp_path / "int8.onnx", tmp_path / "engine")) as session:
        found = next(iter(session.run(feeds[0]).values()))
    with torch.no_grad():
        expected = model(torch.from_numpy(feeds[0]["input"])).numpy()
    # The mean of normed maps is next to nothing: the kernel must take the ratio of the scales.
    np.testing.assert_allclose(found, expected, atol=0.25)
