"""SSDs: priors follow the maps, all of them are cut as if channels were silenced, branches drop, the cfg is what was built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from oracle import random_plan, randomize, silence
from pydeploy.data.boxes.priors import NAMED, Priors, small
from pydeploy.errors import ConfigError, DataError, Infeasible
from pydeploy.models import build
from pydeploy.models.detection import cfg as cfgs
from pydeploy.models.detection.named import FOLDER
from pydeploy.models.detection.ssd import SSD
from pydeploy.models.weights import filled
from pydeploy.prune.structure.trace import trace
from pydeploy.prune.surgery.apply import apply

FILES = sorted(FOLDER.glob("*.cfg"))


def narrow(name: str, priors: Priors, head: str = "full", share: int = 16) -> SSD:
    """The network of a shipped cfg with a sixteenth of the channels."""
    cfg = cfgs.read(FOLDER / f"{name}.cfg")
    filters = {n: max(4, int(b.given["filters"]) // share) for n, b in enumerate(cfg.blocks) if "filters" in b.given}
    return SSD(cfg.widened(filters), 3, 3, priors.per_cell, head)


NETS: dict[str, tuple[Callable[[], SSD], Priors]] = {
    "vgg": (lambda: narrow("vgg16_bn_ssd300", NAMED["ssd300"]), NAMED["ssd300"]),
    "vgg plain": (lambda: narrow("vgg16_bn_ssd300_plain", NAMED["ssd300"]), NAMED["ssd300"]),
    "mobilenetv2": (lambda: narrow("mobilenetv2_ssd320", NAMED["ssd320"], "lite", 8), NAMED["ssd320"]),
    "small": (lambda: build("ssd_small", num_classes=3, width=12), small(96)),
}


@pytest.fixture(params=NETS)
def net(request: pytest.FixtureRequest) -> tuple[SSD, Priors]:
    torch.manual_seed(0)
    make, priors = NETS[request.param]
    return randomize(make()).double().eval(), priors


def picture(priors: Priors) -> torch.Tensor:
    return torch.randn(1, 3, priors.image, priors.image, dtype=torch.float64)


def test_outputs_follow_the_priors_and_cut_equals_silenced(net: tuple[SSD, Priors]) -> None:
    model, priors = net
    x = picture(priors)
    maps = [tuple(one.shape[2:]) for one in model.backbone(x)]
    assert maps == [(side, side) for side in priors.maps]
    scores, boxes = model(x)
    assert scores.shape == (1, len(priors.boxes), 4)
    assert boxes.shape == (1, len(priors.boxes), 4)
    graph = trace(model, x)
    assert all(group.frozen == "model output" for group in graph.groups if group.frozen)
    assert not [group.name for group in graph.groups if group.inexact]
    plan = random_plan(graph, np.random.default_rng(1))
    cut = apply(model, graph, plan)
    silence(model, graph, plan)
    with torch.no_grad():
        for ours, theirs in zip(cut(x), model(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


def test_the_cfg_of_a_cut_network_builds_it_again(net: tuple[SSD, Priors], tmp_path: Path) -> None:
    model, priors = net
    x = picture(priors)
    graph = trace(model, x)
    cut = apply(model, graph, random_plan(graph, np.random.default_rng(2)))
    assert isinstance(cut, SSD)
    cut.save(tmp_path)
    assert tuple(cut.options["boxes"]) == priors.per_cell
    again = build("ssd_cfg", cfg=str(tmp_path / "network.cfg"), num_classes=3, **cut.options).double()
    again = filled(again, tmp_path / "weights.safetensors")[0].eval()
    with torch.no_grad():
        for ours, theirs in zip(again(x), cut(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("levels", [1, 3])
def test_dropped_branches_leave_the_others_as_they_were(net: tuple[SSD, Priors], levels: int) -> None:
    model, priors = net
    cut, left = model.first(levels), priors.first(levels)
    x = picture(priors)
    with torch.no_grad():
        whole, part = model(x), cut(x)
    count = len(left.boxes)
    assert np.array_equal(left.boxes, priors.boxes[:count])
    assert priors.of(count) == left
    assert len(cut.cfg.features) == levels
    assert cut.cfg.features[-1] == len(cut.cfg.blocks) - 1
    for ours, theirs in zip(part, whole, strict=True):
        assert ours.shape[1] == count
        assert torch.equal(ours, theirs[:, :count])


def test_branches_behind_a_dead_layer_are_dead() -> None:
    model = narrow("vgg16_bn_ssd300", NAMED["ssd300"])
    features = model.backbone.cfg.features
    assert model.live_levels(1e-3) == 6
    for level in (5, 3, 1):
        layer = model.backbone.layers[features[level]]
        nn.init.constant_(layer[1].weight, 1e-4)
        assert model.live_levels(1e-3) == level
    nn.init.constant_(model.backbone.layers[0][1].weight, 0)
    with pytest.raises(Infeasible, match=r"layer 0 .* all feature maps need it"):
        model.live_levels(1e-3)


def test_a_shortcut_keeps_what_follows_a_dead_layer_alive() -> None:
    model = build("ssd_small", width=12)
    inner = next(n for n, block in enumerate(model.backbone.cfg.blocks) if block.kind == "shortcut") - 1
    nn.init.zeros_(model.backbone.layers[inner][1].weight)
    assert model.live_levels(1e-3) == 4


def test_the_published_numbers_of_priors() -> None:
    assert len(NAMED["ssd300"].boxes) == 8732
    assert NAMED["ssd300"].per_cell == (4, 6, 6, 6, 4, 4)
    assert sum(p.numel() for p in build("ssd300_vgg16_bn").parameters()) == pytest.approx(26.3e6, rel=0.01)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_cfg_is_written_as_it_is_read(path: Path) -> None:
    cfg = cfgs.read(path)
    again = cfgs.parse(cfg.text(), "again")
    assert [(b.kind, b.given) for b in again.blocks] == [(b.kind, b.given) for b in cfg.blocks]


def test_mobilenetv2_is_torchvisions() -> None:
    from torchvision.models import mobilenet_v2

    cfg = cfgs.read(FOLDER / "mobilenetv2_ssd320.cfg")
    wanted = [m for m in mobilenet_v2().features.modules() if isinstance(m, nn.Conv2d)]
    model = build("ssd320_mobilenetv2")
    found = [
        m for layer in model.backbone.layers[: cfg.pretrained] for m in layer.modules() if isinstance(m, nn.Conv2d)
    ]
    assert [(m.weight.shape, m.stride, m.padding, m.groups) for m in found] == [
        (m.weight.shape, m.stride, m.padding, m.groups) for m in wanted
    ]


@pytest.mark.parametrize("name", FILES, ids=lambda path: path.stem)
def test_quantization_names_the_layers_that_stay_in_float(name: Path) -> None:
    cfg = cfgs.read(name)
    assert cfg.float_layers == ()
    text = cfg.text().replace("[convolutional]", "[convolutional]\nquantization=1", 1)
    layers = [n for n, block in enumerate(cfg.blocks) if block.kind in ("convolutional", "depthwise")]
    assert cfgs.parse(text, "x").float_layers == tuple(f"backbone.layers.{n}.0" for n in layers[1:])


GOOD = "[convolutional]\nfilters=4\nsize=3\npad=1\n[convolutional]\nfilters=4\nfeature=linear\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no blocks"),
        ("filters=3\n", "line 1: expected a section"),
        (GOOD + "[route]\n", r"line 8: unknown section \[route\]"),
        (GOOD + "[maxpool\n", "line 8: unknown section"),
        (GOOD + "[maxpool]\nfilters=3\n", r"line 9: \[maxpool\] has no key 'filters'"),
        (GOOD + "[maxpool]\nsize=x\n", "line 9: 'size' must be a whole number, got 'x'"),
        (GOOD + "[maxpool]\nsize=0\n", "line 9: 'size' must be at least 1"),
        (GOOD + "[maxpool]\nsize=2\nsize=3\n", "line 10: 'size' is given twice"),
        (GOOD + "[maxpool]\nceil_mode=2\n", "line 9: 'ceil_mode' must be 0 or 1"),
        (GOOD + "[maxpool]\nsize=2\npad=2\n", "line 8: 'pad'"),
        (GOOD + "[convolutional]\nsize=3\n", r"line 8: \[convolutional\] needs 'filters'"),
        (GOOD + "[convolutional]\nfilters=4\nactivation=selu\n", "line 10: unknown activation 'selu'"),
        (GOOD + "[shortcut]\nfrom=-1\n", "line 9: 'from' counts back"),
        (GOOD + "[shortcut]\nfrom=-3\n", "line 9: 'from' counts back"),
        (GOOD + "[shortcut]\n", "line 8: 'from' counts back"),
        (GOOD + "size\n", "line 8: expected KEY=VALUE, got 'size'"),
        ("[convolutional]\nfilters=4\n", "no block is a feature map"),
        (GOOD + "[convolutional]\nfilters=4\nfeature=linear\nfeature_idx=0\n", "'feature_idx' must be given for all"),
        (GOOD.replace("filters=4", "filters=6", 1) + "[shortcut]\nfrom=-2\n", "line 8: .shortcut. adds 4 channels to the 6"),
        (GOOD + "[depthwise]\nfilters=5\n", r"line 8: \[depthwise\] keeps its 4 channels"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_cfg_is_told_with_its_line(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        SSD(cfgs.parse(text, "my.cfg"), 3, 3, [2])


def test_a_cfg_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        build("ssd_cfg", cfg=str(tmp_path / "no.cfg"), boxes=[2])
    (tmp_path / "good.cfg").write_text("# mine\n" + GOOD.replace("size=3", "size=3 # three"))
    assert build("ssd_cfg", cfg=str(tmp_path / "good.cfg"), boxes=[2], num_classes=5)(torch.zeros(1, 3, 8, 8))[
        0
    ].shape == (1, 128, 6)
    with pytest.raises(ConfigError, match="1 feature maps, the priors are those of 2"):
        build("ssd_cfg", cfg=str(tmp_path / "good.cfg"), boxes=[2, 2])
    with pytest.raises(ConfigError, match="needs boxes"):
        build("ssd_cfg", cfg=str(tmp_path / "good.cfg"))
