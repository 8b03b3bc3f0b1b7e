"""Latency tables of nets as they come: untrained, with layers that no engine runs, on tokens, with tied weights.

Oracle: the file cut by the probe computes what the cut PyTorch module computes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from patterns import Net, conv
from pydeploy.export import export
from pydeploy.graph import Graph
from pydeploy.latency.probes.cut_onnx import resize
from pydeploy.plan import Plan
from pydeploy.prune.structure.trace import trace
from pydeploy.prune.surgery.apply import apply

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def _dead(m: Any, x: Tensor) -> Tensor:
    x = F.relu(m.a(x))
    m.u(m.v(x))
    return m.b(x)


def _offset(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x) + m.v(torch.relu(m.u(m.table)))[:, :, None, None])


def _table() -> nn.Module:
    net = Net(_offset, a=conv(3, 8), u=nn.Linear(2, 6), v=nn.Linear(6, 8), b=conv(8, 3))
    net.register_buffer("table", torch.randn(1, 2))
    return net


def _fresh_norms() -> nn.Module:
    """Norms that cannot be folded, all with the values of initialization, in groups of one width."""
    return nn.Sequential(conv(3, 8), nn.ReLU(), nn.BatchNorm2d(8), conv(8, 8), nn.ReLU(), nn.BatchNorm2d(8), conv(8, 3))


def _equal_weights() -> nn.Module:
    net = nn.Sequential(conv(8, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 8))
    for layer in net[::2]:
        nn.init.constant_(layer.weight, 0.01)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(conv(3, 8), net, conv(8, 3))


def _scaled_up(m: Any, x: Tensor) -> Tensor:
    return m.b(F.interpolate(m.a(F.max_pool2d(x, 2)), size=x.shape[-2:], mode="bilinear") * torch.sigmoid(m.g(x)))


NETS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "fresh norms": (_fresh_norms, ()),
    "equal weights": (_equal_weights, ()),
    "equal branches": (lambda: Net(lambda m, x: m.c(m.a(x) + F.relu(m.b(x))), a=(a := conv(3, 8)), b=_like(a), c=conv(8, 3)), ()),
    "one layer twice": (lambda: Net(lambda m, x: m.b(F.relu(m.a(x)) + m.a(x)), a=conv(3, 8), b=conv(8, 3)), ()),
    "tied": (lambda: zoo.build("scaled"), ()),
    "result not read": (lambda: Net(_dead, a=conv(3, 8), v=conv(8, 8), u=conv(8, 4), b=conv(8, 3)), ("v", "u")),
    "never called": (lambda: Net(lambda m, x: m.b(m.a(x)), a=conv(3, 8), u=conv(8, 4), b=conv(8, 3)), ()),
    "of constants": (_table, ("u", "v")),
    "on tokens": (lambda: Net(lambda m, x: m.f(F.relu(m.e(m.a(x).flatten(2).transpose(1, 2)))), a=conv(3, 8), e=nn.Linear(8, 6),
                              f=nn.Linear(6, 3)), ()),
    "scaled up": (lambda: Net(_scaled_up, a=conv(3, 8), g=conv(3, 8), b=conv(8, 3)), ()),
}  # fmt: skip
"""Network, and its layers that no engine runs."""


def _like(layer: nn.Conv2d) -> nn.Conv2d:
    """Another layer of the same values."""
    other = conv(layer.in_channels, layer.out_channels)
    other.load_state_dict(layer.state_dict())
    return other


@pytest.mark.parametrize("name", NETS)
def test_a_cut_file_computes_what_the_cut_module_computes(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, idle = NETS[name]
    model, x = make().eval(), torch.randn(1, 3, 8, 8)
    graph = trace(model, x)
    assert graph.idle == idle
    assert Graph.from_json(json.loads(json.dumps(graph.to_json()))) == graph
    assert not {op.name.split(":")[0] for op in graph.ops} & set(idle)
    dense = onnx.load(export(model, x, tmp_path / "m.onnx"))
    assert {op.name for op in graph.ops} <= {node.name for node in dense.graph.node}
    for seed in range(2):
        rng = np.random.default_rng(seed)
        widths = {group.name: int(rng.integers(group.min_width, group.width + 1)) for group in graph.prunable}
        widths |= {
            layer: graph.widths[layer] for layer in idle if layer in widths
        }  # the file holds only what they made
        small = apply(
            model, graph, Plan({group: tuple(range(width)) for group, width in widths.items()}, graph.fingerprint)
        )
        session = onnxruntime.InferenceSession(
            resize(dense, graph, widths).SerializeToString(), providers=["CPUExecutionProvider"]
        )
        with torch.no_grad():
            np.testing.assert_allclose(session.run(None, {"input": x.numpy()})[0], small(x).numpy(), atol=1e-4)
