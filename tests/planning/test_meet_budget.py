"""`pd.meet_budget`: the closed loop for a module at hand, without a config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pydeploy as pd
from pydeploy.backends.base import Engine, open_backend, reopen
from pydeploy.errors import ConfigError, DataError, Infeasible, Mismatch, TraceError
from pydeploy.planning.meet_budget import BudgetMet, budget_named

SHAPE = (1, 3, 16, 16)
QUICK: dict[str, Any] = {"target": "null:fp32", "points": 4, "align": 16}


class Net(nn.Module):
    """A residual network of somebody's own."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.one = nn.Conv2d(width, width, 3, padding=1)
        self.two = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.two(F.relu(self.one(x))))
        out: torch.Tensor = self.head(x.mean((2, 3)))
        return out


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def met(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> BudgetMet:
    return pd.meet_budget(net, torch.randn(SHAPE), budget=0.6, out=tmp_path_factory.mktemp("loop") / "out", **QUICK)


def time_us(engine: Engine) -> float:
    backend = reopen(engine.target)
    with backend.open(engine) as session:
        feeds = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in session.inputs}
        return float(np.median(session.time(feeds, 3)))


def test_the_engine_takes_at_most_the_budget_and_computes_what_the_model_does(met: BudgetMet, net: nn.Module) -> None:
    used = time_us(met.engine) / time_us(met.dense)
    assert 0.45 < used <= 0.6
    assert met.chosen.tried.measured == pytest.approx(used / 0.6, rel=1e-6)
    assert met.chosen in met.rounds
    assert met.plan == met.chosen.plan
    x = torch.randn(SHAPE)
    session = open_backend("onnxruntime")
    onnx = met.engine.path.with_name("model.onnx")
    with session.open(session.build(onnx, onnx.with_name("again.engine"))) as running:
        (out,) = running.run({"input": x.numpy()} if "input" in {s.name for s in running.inputs}
                             else {running.inputs[0].name: x.numpy()}).values()  # fmt: skip
    with torch.no_grad():
        assert np.allclose(out, met.model(x).numpy(), atol=1e-4)
    assert sum(p.numel() for p in met.model.parameters()) < sum(p.numel() for p in net.parameters())


def test_nothing_changes_the_model_and_the_files_load(met: BudgetMet, net: nn.Module) -> None:
    torch.manual_seed(0)
    fresh = Net().eval()
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), fresh.state_dict().values(), strict=True))
    out = met.table.path.parent
    x = torch.randn(SHAPE)
    with torch.no_grad():
        assert torch.allclose(pd.load(out / "model.safetensors", Net()).eval()(x), met.model(x), atol=1e-5)
    assert pd.Plan.load(out / "plan.json") == met.plan


def test_called_again_it_goes_on_and_other_work_begins_anew(met: BudgetMet, net: nn.Module) -> None:
    out, said = met.table.path.parent, []
    again = pd.meet_budget(net, torch.randn(SHAPE), budget=0.6, out=out, say=said.append, **QUICK)
    assert again.rounds == met.rounds
    assert not said  # neither the table nor a round was measured
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("round*.json")}
    other = pd.meet_budget(net, torch.randn(SHAPE), budget=0.8, out=out, say=said.append, **QUICK)
    assert any("round 1" in line for line in said)
    assert not any("networks measured" in line for line in said)
    assert all(path.stat().st_mtime_ns != stamp for path, stamp in stamps.items() if path.exists())
    assert 0.6 < time_us(other.engine) / time_us(other.dense) <= 0.8


@pytest.mark.parametrize("kind", ["table", "path"])
def test_a_table_at_hand_is_used(met: BudgetMet, net: nn.Module, tmp_path: Path, kind: str) -> None:
    table = met.table if kind == "table" else met.table.path
    found = pd.meet_budget(net, torch.randn(SHAPE), budget=0.7, table=table, out=tmp_path, **QUICK)
    assert found.table.path == met.table.path
    assert not (tmp_path / "table.sqlite").exists()
    assert len(found.table.rows()) == len(met.table.rows())


def test_microseconds_scores_and_batches(met: BudgetMet, net: nn.Module, tmp_path: Path) -> None:
    scores = {g.name: np.arange(g.width, dtype=np.float32)[::-1].copy() for g in met.graph.prunable}
    dense_us = time_us(met.dense)
    found = pd.meet_budget(net, torch.randn(SHAPE), budget=0.7 * dense_us, scores=scores, out=tmp_path / "b", **QUICK)
    assert time_us(found.engine) <= 0.7 * dense_us
    assert all(kept == tuple(range(len(kept))) for kept in found.plan.kept.values())  # first channels score highest
    data = [(torch.randn(2, 3, 16, 16), torch.tensor([1, 2]))]
    four = pd.meet_budget(net, torch.randn(4, 3, 16, 16), budget=0.7, scores="taylor", data=data, loss=F.cross_entropy,
                          out=tmp_path / "c", **QUICK)  # fmt: skip
    assert four.engine.target.batch == 4


def test_int8_targets_meet_the_budget_among_int8_engines(net: nn.Module, tmp_path: Path) -> None:
    found = pd.meet_budget(
        net, torch.randn(SHAPE), budget=0.7, out=tmp_path, **{**QUICK, "target": "null:int8"}, min_width=16
    )
    assert found.engine.target.precision == found.dense.target.precision == "int8"
    assert time_us(found.engine) <= 0.7 * time_us(found.dense)


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"budget": 0}, ConfigError, "expected a share .* below 1, such as 0.6, or microseconds"),
        ({"budget": -3.0}, ConfigError, "the budget is -3.0"),
        ({"budget": 1}, ConfigError, "the budget is 1"),
        ({"budget": float("nan")}, ConfigError, "the budget is nan"),
        ({"budget": "0.6"}, ConfigError, "the budget is '0.6'"),
        ({"budget": True}, ConfigError, "the budget is True"),
        ({"budget": 1e12}, ConfigError, "the dense model already meets it"),
        ({"budget": 0.001}, Infeasible, "0.1 % of the dense engine's latency was not met"),
        ({"target": "nul:fp32"}, Exception, "unknown backend 'nul'"),
        ({"target": "null:"}, ConfigError, "names no precision"),
        ({"scores": "l7"}, ConfigError, "l7"),
        ({"scores": "taylor"}, ConfigError, "pass data= and loss="),
        ({"scores": 3}, ConfigError, "scores is int"),
        ({"scores": {}}, DataError, "the scores lack group"),
        ({"scores": "taylor", "data": [], "loss": F.cross_entropy}, DataError, "batch"),
        ({"table": 5}, ConfigError, "table is int"),
        ({"example": 5}, ConfigError, "expected a tensor or a tuple of tensors"),
        ({"example": torch.randn(3, 16)}, TraceError, "fails"),
        ({"min_width": 96}, ConfigError, "no channel of this network can be cut"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(
    net: nn.Module, tmp_path: Path, changes: dict[str, Any], error: type[Exception], text: str
) -> None:
    given = {"example": torch.randn(SHAPE), "budget": 0.6, "out": tmp_path / "out", **QUICK, **changes}
    with pytest.raises(error, match=text):
        pd.meet_budget(net, given.pop("example"), **given)


def test_a_table_of_another_target_or_network_is_refused(met: BudgetMet, tmp_path: Path) -> None:
    with pytest.raises(Mismatch, match="batch: 1 against 2"):
        pd.meet_budget(Net(), torch.randn(2, 3, 16, 16), budget=0.6, table=met.table, out=tmp_path, **QUICK)


def test_frozen_networks_say_why(tmp_path: Path) -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.conv(x)
            return out

    with pytest.raises(ConfigError, match=r"no channel of this network can be cut: .*output"):
        pd.meet_budget(Frozen(), torch.randn(SHAPE), budget=0.6, out=tmp_path, **QUICK)


def test_a_budget_is_a_share_or_microseconds() -> None:
    assert budget_named(0.6).share == 0.6
    assert budget_named(4000).absolute_us == 4000.0
