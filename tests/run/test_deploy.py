"""`pd.deploy`: a program's own network, data, evaluation and training, through all stages of a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import pydeploy as pd
from pydeploy.backends.base import Engine, reopen
from pydeploy.errors import ConfigError, DataError, Mismatch
from pydeploy.run.deploy import Deployed

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
SHAPE = (1, 3, 16, 16)
QUICK: dict[str, Any] = {"target": "computing_backend:Computing:fp32", "points": 3}


class Net(nn.Module):
    """Somebody's own network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.one = nn.Conv2d(64, 64, 3, padding=1)
        self.head = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.one(x))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class Two(nn.Module):
    """Two inputs, and a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(1, 64, 1)
        self.mix = nn.Conv2d(64, 64, 3, padding=1)
        self.mask, self.kind = nn.Conv2d(64, 2, 1), nn.Linear(64, 3)

    def forward(self, picture: Tensor, depth: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.mix(F.relu(self.left(picture) + self.right(depth))))
        return {"mask": self.mask(x), "kind": self.kind(x.mean((2, 3)))}


def made(kind: type[nn.Module] = Net) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def samples(count: int = 4, scale: float = 1.0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(scale * torch.randn(5, 3, 16, 16, generator=generator), torch.arange(5) % 4) for _ in range(count)]


def accuracy(predict: Callable[..., Any]) -> float:
    found = [(predict(x).argmax(1) == y).float().mean() for x, y in samples()]
    return float(torch.stack(found).mean())


def trained(module: nn.Module) -> nn.Module:
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    module.train()
    for x, y in samples():
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()
    return module


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    loader = DataLoader(TensorDataset(*(torch.cat(part) for part in zip(*samples(), strict=True))), batch_size=8)
    return pd.deploy(made(), torch.randn(SHAPE), budget=0.6, scores="taylor", data=loader, loss=F.cross_entropy,
                     evaluate=accuracy, finetune=trained, metric=pd.Metric("accuracy"),
                     out=tmp_path_factory.mktemp("mine") / "out", **QUICK)  # fmt: skip


def time_us(engine: Engine) -> float:
    with reopen(engine.target).open(engine) as session:
        return float(np.median(session.time({s.name: np.zeros(s.shape, s.dtype) for s in session.inputs}, 3)))


def test_the_engine_meets_the_budget_and_computes_what_the_model_does(deployed: Deployed) -> None:
    dense = Engine.load(deployed.folder / "04_dense" / "model.engine")
    assert deployed.met
    assert time_us(deployed.engine) <= 0.6 * time_us(dense)
    assert any(one.met for one in deployed.rounds)
    x = torch.randn(SHAPE)
    with reopen(deployed.engine.target).open(deployed.engine) as session, torch.no_grad():
        (out,) = session.run({session.inputs[0].name: x.numpy()}).values()
        assert np.allclose(out, deployed.model(x).numpy(), atol=1e-4)
    widths = deployed.plan.widths
    assert deployed.model.get_submodule("stem").weight.shape[0] == next(iter(widths.values()))


def test_the_report_says_what_evaluate_says_of_the_network(deployed: Deployed) -> None:
    pruned, dense = deployed.report.models.pruned, deployed.report.models.dense
    with torch.no_grad():
        assert pruned.value == pytest.approx(accuracy(deployed.model))
        assert dense.value == pytest.approx(accuracy(made()))
    assert pruned.samples == 20
    assert deployed.report.metric.name == "accuracy"
    assert deployed.report.model == "Net"
    assert not any("accuracy" in text and "nothing" in text for text in deployed.report.warnings)
    told = deployed.report.config
    assert told["budget"] == 0.6
    assert told["finetune"] == "trained"
    assert {"report.html", "report.md", "report.json"} <= {path.name for path in deployed.folder.iterdir()}
    fresh = made().state_dict()
    assert all(torch.equal(fresh[name], value) for name, value in made().state_dict().items())


def test_a_finished_folder_is_not_written_over(deployed: Deployed) -> None:
    with pytest.raises(ConfigError, match="holds a finished deployment; give another folder"):
        pd.deploy(made(), torch.randn(SHAPE), budget=0.6, out=deployed.folder, **QUICK)


def test_without_functions_nothing_is_claimed(tmp_path: Path) -> None:
    found = pd.deploy(made(), torch.randn(SHAPE), budget=0.7, out=tmp_path, **QUICK)
    assert found.report.metric.name == "deviation from PyTorch"
    assert found.report.models.pruned.value < 1e-3
    assert any("nothing is known" in text for text in found.report.warnings)
    assert any("not trained" in text for text in found.report.warnings)
    x = torch.randn(SHAPE)
    cut = pd.apply(made(), pd.trace(made(), torch.randn(SHAPE)), found.plan)
    with torch.no_grad():
        assert torch.allclose(found.model(x), cut(x), atol=1e-5)


def test_several_inputs_and_outputs_come_as_the_network_has_them(tmp_path: Path) -> None:
    model, shapes = made(Two), []
    pictures, depths = torch.randn(7, 3, 16, 16), torch.randn(7, 1, 16, 16)

    def evaluate(predict: Callable[..., Any]) -> Tensor:
        found = predict(pictures, depths)
        again = predict((pictures, depths))
        assert set(found) == {"mask", "kind"}
        assert torch.equal(found["kind"], again["kind"])
        shapes.append((tuple(found["mask"].shape), tuple(found["kind"].shape)))
        return found["kind"].std()  # a tensor without dimensions is a number

    example = (torch.randn(2, 3, 16, 16), torch.randn(2, 1, 16, 16))
    found = pd.deploy(
        model, example, budget=0.7, evaluate=evaluate, data=[((pictures, depths), None)], out=tmp_path, **QUICK
    )
    assert set(shapes) == {((7, 2, 16, 16), (7, 3))}
    with torch.no_grad():
        assert found.report.models.dense.value == pytest.approx(float(model(pictures, depths)["kind"].std()), rel=1e-3)
    assert found.engine.target.batch == 2


@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_int8_is_calibrated_on_the_data(tmp_path: Path, scale: float) -> None:
    found = pd.deploy(made(), torch.randn(SHAPE), budget=0.8, data=samples(scale=scale), evaluate=accuracy, out=tmp_path,
                      min_width=16, **{**QUICK, "target": "null:int8"})  # fmt: skip
    assert found.engine.target.precision == "int8"
    largest = max(float(x.abs().max()) for x, _ in samples(scale=scale))
    ranges = json.loads((tmp_path / "08_pruned" / "ranges.json").read_text())["tensors"]["input"]
    assert 0.2 * largest < max(map(abs, ranges)) <= 1.01 * largest


def test_what_was_done_before_a_failure_is_kept(tmp_path: Path) -> None:
    lines: list[str] = []
    given: dict[str, Any] = {"budget": 0.7, "evaluate": accuracy, "out": tmp_path, "say": lines.append, **QUICK}
    example = torch.randn(SHAPE)
    with pytest.raises(ConfigError, match="finetune returned None; expected the trained module"):
        pd.deploy(made(), example, finetune=lambda module: trained(module) and None, **given)
    lines.clear()
    assert pd.deploy(made(), example, finetune=trained, **given).met
    kept = {line.partition(":")[0] for line in lines if line.endswith("finished earlier, kept")}
    assert {"02_graph", "03_scores", "04_dense", "05_table", "06_search"} <= kept


class Broken(Exception):
    """What a user's function raises in the last step."""


def stopped_at_the_end(given: dict[str, Any], out: Path) -> None:
    """A deployment that ends in an error after everything but the judgement of the pruned engine."""
    calls: list[int] = []
    judge = given.get("evaluate", accuracy)

    def evaluate(predict: Callable[..., Any]) -> float:
        calls.append(1)
        if len(calls) == 2:
            raise Broken
        return float(judge(predict))

    with pytest.raises(Broken):
        pd.deploy(made(), torch.randn(SHAPE), **{**given, "evaluate": evaluate}, out=out, **QUICK)


def softer(outputs: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(outputs, target, label_smoothing=0.1)


def recall(predict: Callable[..., Any]) -> float:
    return 0.5 * accuracy(predict)


def twice(module: nn.Module) -> nn.Module:
    return trained(trained(module))


GIVEN: dict[str, Any] = {
    "budget": 0.7,
    "scores": "taylor",
    "loss": F.cross_entropy,
    "evaluate": accuracy,
    "finetune": trained,
}
EARLY = {"01_train", "02_graph", "03_scores", "04_dense", "05_table", "06_search", "07_finetune", "08_pruned"}
CHANGED: dict[str, tuple[dict[str, Any], set[str]]] = {
    "nothing": ({}, set()),
    "evaluate": ({"evaluate": recall}, set()),
    "finetune": ({"finetune": twice}, {"07_finetune", "08_pruned"}),
    "loss": ({"loss": softer}, {"03_scores", "06_search", "07_finetune", "08_pruned"}),
    "data": ({"data": samples(scale=2.0)}, {"03_scores", "06_search", "07_finetune", "08_pruned"}),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stopped") / "out"
    stopped_at_the_end({**GIVEN, "data": samples()}, out)
    return out


@pytest.mark.parametrize("what", CHANGED)
def test_exactly_what_reads_a_changed_function_is_done_again(stopped: Path, tmp_path: Path, what: str) -> None:
    changes, again = CHANGED[what]
    lines: list[str] = []
    out = Path(shutil.copytree(stopped, tmp_path / "out"))
    given = {**GIVEN, "data": samples(), **changes}
    found = pd.deploy(made(), torch.randn(SHAPE), **given, out=out, say=lines.append, **QUICK)
    kept = {line.partition(":")[0] for line in lines if line.endswith("finished earlier, kept")}
    assert EARLY - kept == again
    judge: Callable[..., Any] = given["evaluate"]
    with torch.no_grad():
        assert found.report.models.pruned.value == pytest.approx(judge(found.model), rel=1e-4)
        assert found.report.models.dense.value == pytest.approx(judge(made()), rel=1e-4)


def test_a_changed_forward_is_another_network(tmp_path: Path) -> None:
    class Mine(Net):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    out, lines = tmp_path / "out", list[str]()
    stopped_at_the_end({"budget": 0.7}, out)
    pd.deploy(made(Mine), torch.randn(SHAPE), budget=0.7, out=out, say=lines.append, **QUICK)
    assert not [line for line in lines if line.endswith("finished earlier, kept")]


def test_the_folder_to_ship_is_made_and_its_lines_run(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    from pydeploy.report.usage import usage

    monkeypatch.chdir(deployed.folder)
    lines = usage(deployed.report, Path("deploy"))
    assert "np.zeros" in lines
    exec(lines, {})
    assert (deployed.folder / "deploy" / "model.engine").read_bytes() == deployed.engine.path.read_bytes()


def read_to_its_end() -> Iterator[tuple[Tensor, Tensor]]:
    data = iter(samples())
    list(data)
    return data


def wider(module: nn.Module) -> nn.Module:
    return nn.Sequential(module, nn.Linear(4, 4))


def broken(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        next(module.parameters()).fill_(float("nan"))
    return module


def other_widths(_module: nn.Module) -> nn.Module:
    return Net()


BAD = [
    ({"evaluate": lambda _predict: float("nan")}, DataError, "evaluate returned nan"),
    ({"evaluate": lambda _predict: "0.93"}, ConfigError, "evaluate returned '0.93' .str.; expected a number"),
    ({"evaluate": lambda _predict: None}, ConfigError, "evaluate returned None"),
    ({"evaluate": lambda _predict: True}, ConfigError, "evaluate returned True"),
    ({"evaluate": lambda _predict: torch.zeros(2)}, ConfigError, "expected a number"),
    ({"evaluate": lambda _predict: 93.0, "metric": pd.Metric("accuracy")}, DataError, r"a share in \[0, 1\]"),
    ({"evaluate": lambda predict: predict()}, ConfigError, "predict got 0 inputs; the network takes 1"),
    ({"evaluate": 0.9}, ConfigError, "evaluate is float; expected a function"),
    ({"finetune": wider}, Mismatch, "finetune changed the network: 'stem.weight' was .* is absent"),
    ({"finetune": other_widths}, Mismatch, r"finetune changed the network: 'stem.weight' was \[\d+, 3, 3, 3\], is \[64, 3"),
    ({"finetune": broken}, DataError, "after finetune 'stem.weight' holds NaN"),
    ({"finetune": lambda _module: 3}, ConfigError, "finetune returned 3 .int."),
    ({"finetune": "trained"}, ConfigError, "finetune is str; expected a function"),
    ({"data": read_to_its_end()}, DataError, "data gave no batch: it is empty, or an iterator that was read"),
    ({"data": []}, DataError, "data gave no batch"),
    ({"data": 7}, ConfigError, "data is 7 .int.; expected a DataLoader"),
    ({"data": [{"x": 1}]}, ConfigError, "batch 0 of data is .*dict"),
    ({"data": [("a", 1)]}, ConfigError, "the inputs of batch 0 of data are 'a'"),
    ({"data": [(torch.randn(2, 3, 8, 8), 0)]}, ConfigError, r"shapes \[\(3, 8, 8\)\] after the first axis"),
    ({"data": [(torch.full((2, 3, 16, 16), float("nan")), 0)]}, DataError, "hold NaN"),
    ({"scores": "taylor"}, ConfigError, "criterion 'taylor' needs labelled batches: pass data= and loss="),
    ({"scores": "taylor", "data": samples()}, ConfigError, "pass data= and loss="),
    ({"scores": "taylor", "data": samples(), "loss": lambda _out, _target: 1.0}, DataError, "the loss must be one number"),
    ({"scores": 5}, ConfigError, "scores is int"),
    ({"scores": {}}, DataError, "the scores lack group"),
    ({"evaluate": accuracy, "metric": "accuracy"}, ConfigError, "metric is str; expected pd.Metric"),
    ({"budget": 0}, ConfigError, "the budget is 0"),
    ({"target": "null:int8"}, ConfigError, "needs data to calibrate INT8"),
    ({"example": 3}, ConfigError, "example is int"),
    ({"example": ()}, ConfigError, "example is tuple"),
    ({"model": made().state_dict()}, ConfigError, "model is OrderedDict; expected a torch.nn.Module"),
]  # fmt: skip


@pytest.fixture(scope="module")
def table_kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bad")


@pytest.mark.parametrize(("changes", "error", "text"), BAD, ids=[f"{i}-{case[2][:30]}" for i, case in enumerate(BAD)])
def test_bad_input_is_one_sentence(
    table_kept: Path, changes: dict[str, Any], error: type[Exception], text: str
) -> None:
    given = {
        "model": made(),
        "example": torch.randn(SHAPE),
        "budget": 0.7,
        "out": table_kept / "out",
        **QUICK,
        **changes,
    }
    with pytest.raises(error, match=text):
        pd.deploy(given.pop("model"), given.pop("example"), **given)
    assert not (table_kept / "out" / "report.json").exists()
