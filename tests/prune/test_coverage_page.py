"""What docs/figures/coverage.md counts: channels of convolutions that are not the model's outputs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from patterns import Net, conv
from pydeploy.files import write_json
from pydeploy.prune.structure.trace import trace

SHAPE = (1, 3, 8, 8)


@pytest.fixture(scope="module")
def coverage() -> Any:
    spec = importlib.util.spec_from_file_location(
        "coverage_script", Path(__file__).parents[2] / "bench" / "coverage.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _detector(m: Any, x: Tensor) -> Tensor:
    x = torch.relu(m.a(x))
    scores = m.logits(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 2).softmax(-1)
    return scores.flatten(1).sort(1).values[:, :5]


def test_predictions_that_no_layer_reads_are_outputs(coverage: Any) -> None:
    net = Net(_detector, a=conv(3, 6), logits=conv(6, 4))
    totals, fates = coverage.counted(net, trace(net, torch.zeros(SHAPE)), (torch.zeros(SHAPE),))
    assert totals == {"a.weight": 6}
    assert fates == {"": 6}


def test_channels_that_a_layer_reads_count_although_they_are_lost(coverage: Any) -> None:
    """Softmax over channels, and a write into a part of a tensor: frozen, not outputs."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = torch.zeros(1, 6, 8, 8)
        y[:, :, 1:] = m.b(x)[:, :, 1:]
        return m.c(m.a(x).softmax(1) + y)

    net = Net(forward, a=conv(3, 6), b=conv(3, 6), c=conv(6, 3))
    totals, fates = coverage.counted(net, trace(net, torch.zeros(SHAPE)), (torch.zeros(SHAPE),))
    assert totals == {"a.weight": 6, "b.weight": 6}
    assert "" not in fates


def test_page_says_what_was_not_run(coverage: Any, tmp_path: Path) -> None:
    write_json(tmp_path / "models.json", ["classification/one", "classification/two"])
    ours = {"trace_s": 1.0, "apply_s": 0.5, "channels": 8, "prunable": 6, "error": 2e-16,
            "reasons": [["softmax at a.b: works along the channels", 2]]}  # fmt: skip
    write_json(tmp_path / "classification-one.pydeploy.json", ours)
    write_json(tmp_path / "classification-one.torch-pruning.json", {"during": "step", "failed": "ValueError: a|b"})
    lines = coverage.page(tmp_path).splitlines()
    assert "| classification: 2 | 1 of 1 | 1 of 1 | 0 of 1 | 0 of 1 |" in lines
    assert (
        "| one | 1.50 s | 75.0% of 8 | 2e-16 | 2: softmax: works along the channels | fails in step: ValueError: a/b |"
        in lines
    )
    assert "| two | not run |  |  |  | not run |" in lines
