"""Empty rows and columns of masked weights are cut: the small network computes what the masked one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from typer.testing import CliRunner

import pydeploy as pd
import zoo
from pydeploy.cli.app import app
from pydeploy.prune.criteria.members import members
from pydeploy.prune.sparsity.empty_channels import without_empty, zeros_of
from pydeploy.prune.surgery.masks import masked
from pydeploy.run.config import parse
from pydeploy.run.job import fresh_model, open_job
from pydeploy.tasks.evaluate import example
from quiet import Quiet
from test_config_checks import WHOLE

X = torch.zeros(zoo.SHAPE, dtype=torch.float64)


def silence(member: Any, channels: list[int]) -> None:
    """Zero what a member has of some channels."""
    entries = torch.from_numpy(member.piece.entries(np.array(channels, dtype=np.int64)))
    with torch.no_grad():
        member.tensor.index_fill_(member.piece.dim, entries, 0.0)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_channels_that_nothing_reads_are_cut_without_loss(name: str) -> None:
    torch.manual_seed(0)
    model = zoo.build(name).double()
    graph = pd.trace(model, X)
    groups = {
        n: g for n, g in members(model, graph).items() if g.inputs and not graph.by_name[n].inexact and g.width > 2
    }
    for group in groups.values():
        for member in group.inputs:
            silence(member, [0, group.width - 1])
    found = without_empty(model, graph, X)
    assert (found is not None) == bool(groups)
    if found is None:
        return
    small, plan = found
    for name_, group in groups.items():
        fewer = group.width - plan.widths[name_]
        assert fewer <= 2
        assert fewer == 2 or graph.by_name[name_].align > 1 or graph.by_name[name_].min_width > group.width - 2
    x = torch.randn(2, *zoo.SHAPE[1:], dtype=torch.float64)
    for ours, wanted in zip(*(torch.utils._pytree.tree_leaves(m(x)) for m in (small, model)), strict=True):
        torch.testing.assert_close(ours, wanted)


def test_channels_that_nothing_makes_are_constants_and_go_into_their_readers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Conv2d(12, 3, 1)
    ).double()
    with torch.no_grad():
        model[1].bias.uniform_(0.5, 1)
    model.eval()
    graph = pd.trace(model, X)
    for name, channels in (("0", [1, 4]), ("3", [0])):
        silence(members(model, graph)[name].filters[0], channels)
    found = without_empty(model, graph, X)
    assert found is not None
    small, plan = found
    assert plan.widths == {"0": 6, "3": 11}
    x = torch.randn(2, *zoo.SHAPE[1:], dtype=torch.float64)
    torch.testing.assert_close(small(x), model(x))


def test_a_group_that_is_empty_keeps_a_channel() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 1)).double().eval()
    graph = pd.trace(model, X)
    silence(members(model, graph)["0"].inputs[0], list(range(8)))
    found = without_empty(model, graph, X)
    assert found is not None
    assert found[1].widths == {"0": 1}
    assert without_empty(zoo.build("residual").double(), pd.trace(zoo.build("residual").double(), X), X) is None


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], Any]:
    """A config, the dense model's file, and the words that name the model."""
    here = tmp_path_factory.mktemp("masks")
    job = open_job(parse(WHOLE, "test"), Quiet())
    (here / "config.yaml").write_text(yaml.safe_dump(WHOLE))
    pd.save(here / "dense.safetensors", fresh_model(job))
    options = {**job.task.model_options(), **WHOLE["model"]["options"]}
    words = [f"pydeploy:{WHOLE['model']['name']}", "--input", "x".join(map(str, example(job.task)[0].shape)),
             *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]  # fmt: skip
    return here, words, job


def told(*words: str) -> str:
    done = CliRunner().invoke(app, [*words])
    assert done.exit_code == 0, done.exception
    return done.output


def test_fine_tuning_keeps_zeros_and_what_was_cut_before(files: Any) -> None:
    """prune, mask with empty channels, fine-tune: every file loads into the dense architecture; zeros stay, the rest learns."""
    here, words, job = files
    first, second, tuned = here / "cut.safetensors", here / "masked.safetensors", here / "tuned"
    told("prune", *words, "--weights", str(here / "dense.safetensors"), "--ratio", "0.25", "--out", str(first))
    said = told("mask", *words, "--weights", str(first), "--kind", "kernel", "--ratio", "0.8", "--scope", "global", "--out", str(second),
                "--target", "null:fp32")  # fmt: skip
    assert "channels that were empty are cut" in said
    assert "analytic, not measured" in said
    small = pd.load(second, fresh_model(job))
    told("finetune", str(here / "config.yaml"), "--model", str(second), "--teacher", str(here / "dense.safetensors"), "--out",
         str(tuned), "--keep-zeros")  # fmt: skip
    after = pd.load(tuned / "model.safetensors", small)
    zeros = zeros_of(small, pd.trace(small, example(job.task)))
    assert zeros
    for name, kept in zeros.items():
        assert (after.get_parameter(name)[~kept] == 0).all()
        assert not kept.any() or not torch.equal(after.get_parameter(name)[kept], small.get_parameter(name)[kept])


def test_a_runtime_that_executes_zeros_is_said_to(files: Any) -> None:
    here, words, _ = files
    said = told("mask", *words, "--kind", "magnitude", "--ratio", "0.5", "--out", str(here / "half.safetensors"), "--target",
                "onnxruntime:fp32", "--threads", "1")  # fmt: skip
    assert "times the same network without zeros" in said
    assert "the latency is that of the dense network" in said or "makes use of the zeros" in said


def test_nothing_to_keep(files: Any) -> None:
    here, _, _ = files
    done = CliRunner().invoke(app, ["finetune", str(here / "config.yaml"), "--model", str(here / "dense.safetensors"), "--teacher",
                                    str(here / "dense.safetensors"), "--out", str(here / "none"), "--keep-zeros"])  # fmt: skip
    assert "no weight of a layer is zero" in str(done.exception)


def test_masks_of_zeros_count_as_they_are() -> None:
    model = zoo.build("residual")
    with torch.no_grad():
        model.a[0].weight[:, ::2] = 0
    graph = pd.trace(model, X.float())
    masks = zeros_of(model, graph)
    assert set(masks) == {"a.0.weight"}
    network = masked(model, masks)
    torch.testing.assert_close(network(X.float()), model(X.float()))
