"""Kernel, pattern and N:M masks: NumPy oracles, training with the mask in place, export, both MAC counts."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from pydeploy.errors import ConfigError, Mismatch
from pydeploy.export import export
from pydeploy.prune.structure.trace import trace
from pydeploy.prune.surgery.masks import Count, count, inner_mask, kernel_mask, masked, n_m_mask, pattern_mask, unmasked
from zoo import SHAPE, build


def weight_of(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.99])
def test_kernel_mask_removes_the_smallest_l1_norms(ratio: float) -> None:
    weight = weight_of(6, 7, 3, 3)
    mask = kernel_mask(weight, ratio)
    per_kernel = mask.flatten(2)
    assert (per_kernel.all(2) | ~per_kernel.any(2)).all(), "a kernel goes whole or not at all"
    norms = weight.abs().sum((2, 3)).numpy().ravel()
    removed = ~per_kernel[..., 0].numpy().ravel()
    assert removed.sum() == int(ratio * 42)
    assert set(np.flatnonzero(removed)) == set(np.argsort(norms)[: int(ratio * 42)])


@pytest.mark.parametrize("shape", [(4, 8), (4, 8, 1, 1), (4, 10, 3, 3)])
def test_two_of_four_keeps_the_best_of_the_six_choices(shape: tuple[int, ...]) -> None:
    weight = weight_of(*shape)
    kept = torch.where(n_m_mask(weight), weight, 0).movedim(1, -1).reshape(-1, shape[1]).numpy()
    rows = weight.movedim(1, -1).reshape(-1, shape[1]).numpy()
    for row, got in zip(rows, kept, strict=True):
        for begin in range(0, len(row) - 3, 4):
            best = max(sum(abs(row[begin + i]) for i in pair) for pair in itertools.combinations(range(4), 2))
            assert np.abs(got[begin : begin + 4]).sum() == pytest.approx(best)
            assert np.count_nonzero(got[begin : begin + 4]) == 2


def test_patterns_come_from_a_library_and_keep_most_of_each_kernel() -> None:
    weight = weight_of(16, 8, 3, 3)
    mask = pattern_mask(weight, keep=4, patterns=5).flatten(2).reshape(-1, 9)
    assert (mask.sum(1) == 4).all()
    assert mask[:, 4].all(), "the centre stays"
    library = {tuple(row) for row in mask.tolist()}
    assert 1 < len(library) <= 5
    energy = weight.reshape(-1, 9).square()
    for kernel, own in zip(energy, mask, strict=True):
        assert all(kernel[own].sum() >= kernel[torch.tensor(other)].sum() - 1e-6 for other in library)


def test_inner_mask_keeps_the_largest_of_every_kernel() -> None:
    weight = weight_of(3, 4, 3, 3)
    mask = inner_mask(weight, 5).reshape(12, 9)
    for kernel, own in zip(weight.reshape(12, 9).abs(), mask, strict=True):
        assert own.sum() == 5
        assert kernel[own].min() >= kernel[~own].max()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: kernel_mask(w, 1.0), "0 <= ratio < 1, not 1.0"),
        (lambda w: kernel_mask(w[:, :, 0, 0], 0.5), "no kernels; use N:M"),
        (lambda w: n_m_mask(w, 5, 4), "1 <= n <= m <= 64, not 5:4"),
        (lambda w: inner_mask(w, 10), "keep = 10 for kernels of 9"),
        (lambda w: pattern_mask(w[..., :1, :1]), "kernels of 1"),
        (lambda w: pattern_mask(w, 4, 0), "patterns = 0"),
    ],
)
def test_impossible_masks_are_refused(call, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call(weight_of(4, 4, 3, 3))


def masks_for(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: n_m_mask(p) for name, p in model.named_parameters() if p.dim() > 1 and p.shape[1] >= 4}


def test_masked_weights_stay_masked_while_training() -> None:
    model = build("residual").train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    masks = masks_for(model)
    network = masked(model, masks)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        network(torch.randn(4, *SHAPE[1:])).square().mean().backward()
        optimizer.step()
    result = unmasked(network)
    tensors = result.state_dict()
    assert set(tensors) == set(before)
    for name, mask in masks.items():
        assert not tensors[name][~mask].any()
        assert not torch.equal(tensors[name], before[name] * mask), "the others were trained"
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    x = torch.randn(2, *SHAPE[1:])
    assert torch.equal(result.eval()(x), network.eval()(x))
    assert "parametrizations" in "".join(network.state_dict()), "the masked network itself is left as it is"


def test_export_folds_masks(tmp_path) -> None:
    model = build("plain")
    masks = masks_for(model)
    path = export(masked(model, masks), torch.zeros(SHAPE), tmp_path / "masked.onnx")
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    for name in masks:
        zeros = float(np.mean(weights[name] == 0))
        assert zeros == pytest.approx(1 - float(masks[name].float().mean())), name
    assert not any("mask" in name for name in weights)


def test_both_counts_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 2))
    graph = trace(model, torch.zeros(1, 4, 4, 4))
    dense = 8 * 4 * 9 * 16 + 128 * 2
    assert count(model, graph) == Count(dense, dense, 288 + 258, 288 + 258)
    network = masked(model, {"0.weight": n_m_mask(model[0].weight)})
    assert count(network, graph) == Count(dense, 8 * 4 * 9 * 16 // 2 + 256, 546, 546 - 144)
    with pytest.raises(Mismatch, match=r"'0.weight' with shape \[8, 4, 3, 3\], the model has \[6, 4, 3, 3\]"):
        count(nn.Sequential(nn.Conv2d(4, 6, 3)), graph)


def test_a_mask_that_fits_no_weight_is_refused() -> None:
    model = build("plain")
    with pytest.raises(Mismatch, match="does not exist"):
        masked(model, {"nothing.weight": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(Mismatch, match="expected bool of its shape"):
        masked(model, {"body.0.weight": torch.ones(8, 3, 3, 3)})
