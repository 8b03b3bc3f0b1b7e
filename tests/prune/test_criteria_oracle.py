"""The oracle against cutting each channel off and running the whole network; agreement against counting by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn
from typer.testing import CliRunner

import pydeploy as pd
import zoo
from oracle import randomize
from patterns import Net, conv
from pydeploy.cli.app import app
from pydeploy.errors import ConfigError, DataError
from pydeploy.plan import Plan
from pydeploy.prune.criteria.oracle import Agreement, Spared, agreement, oracle, reconstruction
from test_config_checks import WHOLE
from test_scores import MAKERS

SHAPE = (3, 3, 8, 8)


def batches(count: int = 2) -> list[tuple[Tensor, None]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(SHAPE, dtype=torch.float64, generator=generator), None) for _ in range(count)]


def loss(output: Any, _target: Any) -> Tensor:
    leaves = [output] if isinstance(output, Tensor) else torch.utils._pytree.tree_leaves(output)
    return sum(leaf.square().mean() for leaf in leaves if isinstance(leaf, Tensor))  # type: ignore[return-value]


NETS = {**{name: (lambda name=name: zoo.build(name)) for name in zoo.ZOO},
        **{name: MAKERS[name][0] for name in ("transposed", "bare weight", "multi-head attention", "masked", "two producers")},
        "in place": lambda: Net(lambda m, x: m.c(torch.relu_(m.n(m.a(x)).add_(m.b(x)).mul_(2))),
                                a=conv(3, 6), b=conv(3, 6), n=nn.BatchNorm2d(6), c=conv(6, 3)),
        "called twice": lambda: Net(lambda m, x: m.c(m.b(torch.relu(m.b(torch.relu(m.a(x)))))), a=conv(3, 6), b=conv(6, 6), c=conv(6, 3)),
        }  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_the_loss_without_a_channel_is_that_of_the_cut_network(name: str) -> None:
    torch.manual_seed(0)
    model = randomize(NETS[name]()).double().eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    graph = pd.trace(model, batches()[0][0])
    if not graph.prunable:
        with pytest.raises(ConfigError, match="no prunable group"):
            oracle(model, graph, data=batches(), loss=loss)
        return
    found = oracle(model, graph, data=batches(), loss=loss)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
    assert not [module for module in model.modules() if "forward" in vars(module)]
    with torch.no_grad():
        base = np.mean([float(loss(model(x), None)) for x, _ in batches()])
        for group in graph.prunable:
            assert found[group.name].channels.tolist() == list(range(group.width))
            if group.inexact or group.width - 1 < group.min_width or group.align > 1:
                continue
            for channel in {0, group.width // 2}:
                kept = tuple(c for c in range(group.width) if c != channel)
                small = pd.apply(model, graph, Plan({group.name: kept}, graph.fingerprint))
                want = np.mean([float(loss(small(x), None)) for x, _ in batches()]) - base
                assert found[group.name].increase[channel] == pytest.approx(want, rel=1e-6, abs=1e-9), (
                    group.name,
                    channel,
                )


def test_only_the_rest_is_run_again() -> None:
    model = zoo.build("plain").double()
    graph = pd.trace(model, batches()[0][0])
    calls = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    ran: dict[str, int] = dict.fromkeys(calls, 0)
    for name in calls:
        layer: Any = model.get_submodule(name)
        plain = layer._conv_forward
        layer._conv_forward = lambda *args, name=name, plain=plain: (
            ran.__setitem__(name, ran[name] + 1),
            plain(*args),
        )[1]
    oracle(model, graph, data=batches(1), loss=loss)
    first, last = min(ran.values()), max(ran.values())
    assert first == ran[next(iter(calls))] == graph.by_name[next(iter(calls))].width + 1
    assert first < last <= sum(group.width for group in graph.prunable) + 1


def test_agreement_by_hand() -> None:
    spared = {"g": Spared(np.arange(10), np.array([0.1, 0.2, 5, 4, 3, 2, 9, 8, 7, 6])),
              "h": Spared(np.array([1, 3]), np.array([1.0, 0.0]))}  # fmt: skip
    scores = {"g": np.array([1, 9, 2, 3, 4, 5, 6, 7, 8, 10], np.float32), "h": np.array([9, 5, 9, 6], np.float32)}
    found = agreement(scores, spared)
    assert (found["g"].precision, found["g"].chance, found["g"].lift) == (0.5, 0.2, 2.5)
    assert found["h"] == Agreement(0.0, 0.5, -1.0)
    ranks = [np.argsort(np.argsort(v)) for v in (scores["g"], spared["g"].increase)]
    assert found["g"].spearman == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert agreement({"g": np.ones(10)}, {"g": spared["g"]})["g"].spearman == 0.0
    assert agreement({"g": spared["g"].increase}, {"g": spared["g"]})["g"] == Agreement(1.0, 0.2, pytest.approx(1.0))


def test_a_random_choice_of_channels() -> None:
    model = zoo.build("residual").double()
    graph = pd.trace(model, batches()[0][0])
    whole = oracle(model, graph, data=batches(1), loss=loss)
    some = oracle(model, graph, data=batches(1), loss=loss, channels=4, groups=lambda name: name != "a.0", seed=1)
    assert set(some) == {group.name for group in graph.prunable} - {"a.0"}
    for name, found in some.items():
        assert len(found.channels) == 4
        np.testing.assert_allclose(found.increase, whole[name].increase[found.channels], rtol=1e-9, atol=1e-12)


def test_reconstruction_by_hand() -> None:
    model, other = zoo.build("residual").double(), zoo.build("residual", seed=1).double()
    one, two = (torch.cat([m(x).detach() for x, _ in batches()]) for m in (model, other))
    mean, share = reconstruction(model, other, (x for x, _ in batches()))
    assert mean == pytest.approx(float((one - two).square().mean()))
    assert share == pytest.approx(float((one - two).square().sum() / one.square().sum()))


def test_what_cannot_be() -> None:
    model = zoo.build("residual").double()
    graph = pd.trace(model, batches()[0][0])
    with pytest.raises(ConfigError, match="no prunable group"):
        oracle(model, graph, data=batches(), loss=loss, groups=lambda _: False)
    with pytest.raises(ConfigError, match="channels is 1"):
        oracle(model, graph, data=batches(), loss=loss, channels=1)
    with pytest.raises(DataError, match="no batches"):
        oracle(model, graph, data=[], loss=loss)
    with pytest.raises(DataError, match="the loss is nan"):
        oracle(model, graph, data=batches(), loss=lambda out, _: out.sum() * torch.nan)
    with pytest.raises(DataError, match="got none"):
        reconstruction(model, model, [])


def test_the_verb(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(WHOLE))
    words = f"oracle pydeploy:resnet8 --input 1x1x12x12 -o width=8 -o in_channels=1 --config {tmp_path / 'config.yaml'} --criterion"
    done = CliRunner().invoke(
        app, [*words.split(), "l1,taylor,random", "--channels", "4", "--out", str(tmp_path / "oracle.json")]
    )
    assert done.exit_code == 0, done.output
    assert all(name in done.output for name in ("l1", "taylor", "random", "lift", "spearman"))
    assert (tmp_path / "oracle.json").is_file()
