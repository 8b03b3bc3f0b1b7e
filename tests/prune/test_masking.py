"""Masks of whole networks: what goes is what scores lowest, exactly so many, and no layer is emptied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import pydeploy as pd
import zoo
from pydeploy.cli.app import app
from pydeploy.errors import ConfigError, DataError
from pydeploy.prune.sparsity.masking import MaskRules, masks_for
from pydeploy.prune.surgery.masks import count, masked, unmasked

X = torch.zeros(zoo.SHAPE)


def made(name: str = "residual", **rules: Any) -> tuple[nn.Module, Any, Any]:
    model = zoo.build(name)
    graph = pd.trace(model, X)
    return model, graph, masks_for(model, graph, MaskRules(**rules))


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("kind", ["kernel", "magnitude"])
def test_the_smallest_go(kind: str, scope: str, ratio: float) -> None:
    model, _, found = made(kind=kind, ratio=ratio, scope=scope)
    scores, kept = {}, {}
    for name, mask in found.masks.items():
        weight = model.get_parameter(name).detach().double().abs()
        if kind == "kernel":
            assert (mask.flatten(2).all(2) == mask.flatten(2).any(2)).all()
            weight, mask = weight.flatten(2).sum(2), mask.flatten(2).all(2)
            weight = weight / weight.mean()
        scores[name], kept[name] = weight.flatten().numpy(), mask.flatten().numpy()
        assert kept[name].any()
    if scope == "global":
        scores, kept = {"all": np.concatenate(list(scores.values()))}, {"all": np.concatenate(list(kept.values()))}
    for name, values in scores.items():
        removed = int(ratio * len(values))
        assert removed - len(found.masks) <= (~kept[name]).sum() <= removed
        if (~kept[name]).sum() == removed:
            assert values[~kept[name]].max() <= values[kept[name]].min()


def test_lamp_is_the_formula_over_all_layers() -> None:
    model, _, found = made(kind="lamp", ratio=0.6)
    scores = []
    for name in found.masks:
        squares = model.get_parameter(name).detach().double().square().flatten().numpy()
        scores.append(np.array([own / squares[squares >= own].sum() for own in squares]))
        assert scores[-1].max() == pytest.approx(1.0)
    every, kept = np.concatenate(scores), np.concatenate([mask.flatten().numpy() for mask in found.masks.values()])
    assert (~kept).sum() == int(0.6 * len(every))
    assert every[~kept].max() <= every[kept].min()


def test_layers_that_cannot_have_such_a_mask_are_told() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 8, 1)
    )
    graph = pd.trace(model, X)
    found = masks_for(model, graph, MaskRules(kind="nm"))
    assert set(found.masks) == {"2.weight", "4.weight"}
    assert "at least 32 inputs" in found.skipped["0.weight"]
    runs = found.masks["2.weight"].movedim(1, -1).reshape(-1, 4).sum(1)
    assert (runs == 2).all()
    patterns = masks_for(model, graph, MaskRules(kind="pattern"))
    assert set(patterns.masks) == {"0.weight", "2.weight"}
    with pytest.raises(ConfigError, match=r"no layer can have a mask of kind nm: .*at least 32 inputs"):
        made("plain", kind="nm")
    small = masked(model, found.masks)
    cost = count(small, graph)
    assert cost.dense_macs == graph.macs() > cost.effective_macs
    assert torch.equal(unmasked(small)(X), small(X))


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"ratio": 0}, "'ratio': should be greater than 0"), ({"ratio": 1}, "'ratio': should be less than 1"),
    ({"kind": "nm", "ratio": 0.5}, "takes neither ratio nor scope"), ({"kind": "lamp", "scope": "local"}, "global scope"),
    ({"kind": "nm", "n": 4}, "n < m"), ({"kind": "kernels"}, "did you mean 'kernel'"),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "said"), WRONG)
def test_wrong_rules(rules: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        MaskRules(**rules)


def test_weights_that_are_not_finite() -> None:
    model = zoo.build("residual")
    graph = pd.trace(model, X)
    with torch.no_grad():
        model.fc.weight[0, 0] = torch.nan
    with pytest.raises(DataError, match=r"'fc.weight' holds NaN"):
        masks_for(model, graph, MaskRules(kind="magnitude"))


def test_the_verb(tmp_path: Path) -> None:
    out = tmp_path / "masked.safetensors"
    words = f"mask pydeploy:resnet8 --input 1x3x16x16 --kind kernel --ratio 0.4 --scope global --out {out}"
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == 0, done.output
    assert "effective" in done.output
    from pydeploy.models import build

    loaded = pd.load(out, build("resnet8"))
    kernels = torch.cat([(p == 0).flatten(2).all(2).flatten() for p in loaded.parameters() if p.dim() == 4])
    assert int(kernels.sum()) == int(0.4 * len(kernels))
