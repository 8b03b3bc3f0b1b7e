"""Each criterion against an independent form of its formula: NumPy, loops over images and channels, gates by autograd."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import zoo
from oracle import randomize
from pydeploy.errors import ConfigError, DataError
from pydeploy.prune.criteria.activations import Activations
from pydeploy.prune.criteria.correlation import _removed
from pydeploy.prune.criteria.members import members
from pydeploy.prune.criteria.passes import Batches
from pydeploy.prune.criteria.score import score
from pydeploy.prune.structure.trace import trace
from pydeploy.prune.surgery.fold import fold
from test_scores import NETS

SHAPE = (4, 3, 8, 8)
X = torch.zeros(SHAPE, dtype=torch.float64)
Array = NDArray[np.float64]


def net(name: str = "residual") -> Any:
    torch.manual_seed(0)
    return randomize(zoo.build(name)).double().eval()


def batches(count: int = 2) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(SHAPE, dtype=torch.float64, generator=generator), torch.randint(0, 3, (SHAPE[0],), generator=generator))
            for _ in range(count)]  # fmt: skip


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(2).mean(2) if output.dim() == 4 else output, target)


def scored(model: nn.Module, criterion: str, **options: Any) -> Mapping[str, NDArray[np.float32]]:
    return score(model, trace(model, X), criterion, data=batches(), loss=loss, options=options)


def rows(weight: Tensor, dim: int = 0) -> Array:
    values = weight.detach().numpy()
    return np.moveaxis(values, dim, 0).reshape(values.shape[dim], -1)


def stream(model: Any) -> tuple[list[Array], list[Array], list[Array]]:
    """What makes, reads and scales the first residual stream of the net, by hand."""
    makes = [rows(model.stem[0].weight), rows(model.a[3].weight)]
    reads = [rows(model.a[0].weight, 1), rows(model.b[0].weight, 1), rows(model.down[0].weight, 1)]
    return makes, reads, [rows(model.stem[1].weight), rows(model.a[4].weight)]


# ---- weights


@pytest.mark.parametrize("reduce", ["mean", "sum", "max", "first"])
@pytest.mark.parametrize("normalize", ["mean", "none", "max", "numel"])
@pytest.mark.parametrize(("criterion", "power"), [("l1", 1), ("l2", 2)])
def test_norms_with_options(criterion: str, power: int, normalize: str, reduce: str) -> None:
    model = net()
    norms = []
    for filters in stream(model)[0]:
        norm = (np.abs(filters) ** power).sum(1) ** (1 / power)
        by = {"mean": norm.mean(), "max": norm.max(), "numel": filters.shape[1], "none": 1}[normalize]
        norms.append(norm / by)
    want = {"mean": np.mean(norms, 0), "sum": np.sum(norms, 0), "max": np.max(norms, 0), "first": norms[0]}[reduce]
    got = scored(model, criterion, normalize=normalize, reduce=reduce)["stem.0"]
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("name", ["residual", "plain", "grouped", "depthwise_se"])
def test_fold_bn_is_the_norm_of_the_folded_network(name: str) -> None:
    model = net(name)
    small = fold(model, X)
    graph = trace(model, X)
    got = score(model, graph, "l1", options={"fold_bn": True, "normalize": "none", "reduce": "sum"})
    for group_name, group in members(model, graph).items():
        want = np.zeros(group.width)
        for member in group.filters:
            twin = small.get_parameter(member.piece.param)
            entries = member.piece.entries(np.arange(group.width, dtype=np.int64))
            values = np.moveaxis(twin.detach().numpy(), member.piece.dim, 0)[entries]
            want += np.abs(values).reshape(group.width, -1).sum(1)
        np.testing.assert_allclose(got[group_name], want, rtol=1e-6, err_msg=group_name)


@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
def test_group_norm_counts_all_that_belongs_to_a_channel(reduce: str) -> None:
    model = net()
    squares = [(part**2).sum(1) for side in stream(model) for part in side]
    assert len(squares) == 7
    want = {"mean": np.mean, "sum": np.sum, "max": np.max}[reduce](squares, axis=0)
    np.testing.assert_allclose(scored(model, "group_norm", reduce=reduce)["stem.0"], want / want.mean(), rtol=1e-6)


def test_lamp_is_the_share_of_all_that_are_not_smaller() -> None:
    model = net()
    size = np.mean([(part**2).sum(1) for side in stream(model) for part in side], axis=0)
    want = [own / sum(other for other in size if other >= own) for own in size]
    got = scored(model, "lamp")
    np.testing.assert_allclose(got["stem.0"], want, rtol=1e-6)
    assert all(values.max() == pytest.approx(1.0) for values in got.values())


def test_fpgm_by_loops_over_pairs() -> None:
    model = net()
    distances = [
        np.array([sum(np.linalg.norm(a - b) for b in filters) for a in filters]) for filters in stream(model)[0]
    ]
    got = scored(model, "fpgm")["stem.0"]
    np.testing.assert_allclose(got, np.mean([d / d.mean() for d in distances], axis=0), rtol=1e-5)
    with torch.no_grad():
        model.b[0].weight[3] = model.b[0].weight.mean(0)
    assert scored(model, "fpgm")["b.0"].argmin() == 3


def test_fpgm_in_two_stages() -> None:
    """The filters with the smallest norms go first; distances run over the others alone."""
    model = net()
    filters = rows(model.b[0].weight)
    norms = np.linalg.norm(filters, axis=1)
    few, rest = np.argsort(norms)[:3], np.sort(np.argsort(norms)[3:])
    got = scored(model, "fpgm", norm_rate=0.7)["b.0"]
    assert np.argsort(got)[:3].tolist() == few.tolist()
    distances = np.array([sum(np.linalg.norm(filters[a] - filters[b]) for b in rest) for a in rest])
    np.testing.assert_allclose(got[rest], distances / distances.mean(), rtol=1e-5)
    for wrong in (0, 1.5, -1):
        with pytest.raises(ConfigError, match="norm_rate"):
            scored(model, "fpgm", norm_rate=wrong)


def test_scales_of_batch_norms() -> None:
    model = net()
    both = [np.abs(part[:, 0]) for part in stream(model)[2]]
    np.testing.assert_allclose(scored(model, "bn_scale")["stem.0"], np.mean(both, 0), rtol=1e-6)
    np.testing.assert_allclose(scored(model, "bn_scale", reduce="max")["stem.0"], np.max(both, 0), rtol=1e-6)
    np.testing.assert_allclose(scored(model, "bn_scale", reduce="first")["stem.0"], both[0], rtol=1e-6)
    np.testing.assert_allclose(scored(model, "bn_ista")["stem.0"], np.max(both, 0), rtol=1e-6)


# ---- gradients


def test_sums_over_the_weights_of_a_filter() -> None:
    model = net()
    squares, sizes = np.zeros(8), np.zeros(8)
    for x, target in batches():
        parts = [model.stem[0].weight, model.a[3].weight]
        found = torch.autograd.grad(loss(model(x), target), parts)
        for weight, gradient in zip(parts, found, strict=True):
            squares += (rows(weight) * rows(gradient)).__pow__(2).sum(1) / 2
            sizes += np.abs(rows(weight) * rows(gradient)).sum(1) / 2
    np.testing.assert_allclose(scored(model, "taylor_fo")["stem.0"], squares, rtol=1e-5)
    np.testing.assert_allclose(scored(model, "taylor_abs")["stem.0"], sizes, rtol=1e-5)


def test_taylor_bn_is_a_gate_right_behind_the_batch_norm() -> None:
    model = net()
    want, without = np.zeros(10), np.zeros(10)
    for x, target in batches():
        gate = torch.ones(10, dtype=torch.float64, requires_grad=True)
        handle = model.b[1].register_forward_hook(lambda _m, _i, out, z=gate: out * z.view(1, -1, 1, 1))
        want += torch.autograd.grad(loss(model(x), target), gate)[0].numpy() ** 2 / 2
        handle.remove()
        gamma = model.b[1].weight
        without += (gamma * torch.autograd.grad(loss(model(x), target), gamma)[0]).detach().numpy() ** 2 / 2
    np.testing.assert_allclose(scored(model, "taylor_bn")["b.0"], want, rtol=1e-5)
    np.testing.assert_allclose(scored(model, "taylor_bn", include_beta=False)["b.0"], without, rtol=1e-5)


# ---- activations

UNSEEN: set[tuple[str, str]] = set()
"""Groups whose weights no operator reads as they are stored."""


@pytest.mark.parametrize("name", NETS)
def test_maps_are_what_the_filters_make(name: str) -> None:
    """A change of one channel's filters changes that channel's map where it is first made, and no other channel's."""
    torch.manual_seed(0)
    model = randomize(NETS[name]()).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    groups = members(model, trace(model, x))
    data = Batches([(x, None)])
    base = next(iter(Activations(model, groups, data))).maps
    for group in groups.values():
        if group.name not in base:
            assert (name, group.name) in UNSEEN, f"{group.name} is not seen"
            continue
        channel = group.width // 2
        state = {key: value.clone() for key, value in model.state_dict().items()}
        for member in (*group.filters, *group.scales):
            tensor = model.state_dict(keep_vars=True)[member.piece.param]
            entries = torch.from_numpy(member.piece.entries(np.array([channel])))
            with torch.no_grad():
                tensor.index_copy_(member.piece.dim, entries, tensor.index_select(member.piece.dim, entries) * 1.5)
        new = next(iter(Activations(model, groups, data))).maps[group.name]
        model.load_state_dict(state)
        moved = [
            (one - two).abs().movedim(1, 0).flatten(1).amax(1) for one, two in zip(base[group.name], new, strict=True)
        ]
        assert moved[0][channel] > 0
        others = torch.cat([moved[0][:channel], moved[0][channel + 1 :]])
        assert len(others) == 0 or others.max() == 0 or not group.scales, group.name
        assert all(map(bool, [m.shape[1] == group.width for m in new]))


def maps_of(model: Any, layer: nn.Module) -> Array:
    """Outputs of one module for all batches."""
    found: list[Array] = []
    handle = layer.register_forward_hook(lambda _m, _i, out: found.append(out.detach().numpy()))
    for x, _ in batches():
        model(x)
    handle.remove()
    return np.concatenate(found)


def test_l1_corr_against_corrcoef() -> None:
    model = net()
    maps = maps_of(model, model.b[1])  # 4 x 4, so nothing is averaged
    correlation = np.abs(np.corrcoef(np.moveaxis(maps, 1, 0).reshape(10, -1)))
    np.fill_diagonal(correlation, 0)
    size = np.abs(rows(model.b[0].weight)).sum(1)
    for how, redundancy in (("mean", correlation.sum(1) / 9), ("max", correlation.max(1))):
        got = scored(model, "l1_corr", greedy=False, redundancy=how, penalty=0.3)["b.0"]
        np.testing.assert_allclose(got, size / size.max() * (1 - 0.3 * redundancy), rtol=1e-5)
        left, order = list(range(10)), []
        while left:
            among = correlation[np.ix_(left, left)]
            of = among.max(1) if how == "max" else among.sum(1) / max(len(left) - 1, 1)
            order.append(left.pop(int(np.argmin(size[left] * (1 - 0.3 * of)))))
        greedy = scored(model, "l1_corr", redundancy=how, penalty=0.3)["b.0"]
        assert np.argsort(greedy, kind="stable").tolist() == order


@pytest.mark.parametrize("redundancy", ["mean", "max"])
def test_of_two_twins_one_goes(redundancy: str) -> None:
    model = net()
    with torch.no_grad():
        conv, norm = model.b[0], model.b[1]
        conv.weight /= conv.weight.abs().sum((1, 2, 3), keepdim=True)
        for tensor in (conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor[7] = tensor[2]
    order = np.argsort(scored(model, "l1_corr", redundancy=redundancy, penalty=1.0)["b.0"], kind="stable").tolist()
    assert min(order.index(2), order.index(7)) < max(order.index(2), order.index(7)) - 1
    if redundancy == "max":
        assert order[0] in (2, 7)
    alone = _removed(
        np.ones(4),
        np.array([[0, 1, 0.1, 0.1], [1, 0, 0.1, 0.1], [0.1, 0.1, 0, 0.2], [0.1, 0.1, 0.2, 0]]),
        0.5,
        redundancy,
    )
    assert np.argsort(alone).tolist()[0] == 0
    assert np.argsort(alone).tolist()[1] != 1


def test_a_constant_channel_scores_zero() -> None:
    model = net()
    with torch.no_grad():
        model.b[1].weight[4] = 0
    for greedy in (True, False):
        scores = scored(model, "l1_corr", greedy=greedy)["b.0"]
        assert scores[4] == 0
        assert (np.delete(scores, 4) > 0).all()


def test_sirfp_by_loops() -> None:
    model = net()
    maps = maps_of(model, model.b[1])
    similarity, detail = np.zeros((10, 10)), np.zeros(10)
    for image in maps:
        unit = np.array([channel / (np.abs(channel).sum() + 1e-5) for channel in image])
        for i in range(10):
            for j in range(10):
                similarity[i, j] += (unit[i] * unit[j]).sum() / len(maps)
            padded = np.pad(image[i], 1)
            size = np.zeros((4, 4))
            for y in range(4):
                for x in range(4):
                    gy = gx = 0.0
                    for dy in (-1, 0, 1):
                        for dx in (-1, 0, 1):
                            if dy or dx:
                                value = padded[y + 1 + dy, x + 1 + dx] / (dy * dy + dx * dx)
                                gy, gx = gy + dy * value, gx + dx * value
                    size[y, x] = np.hypot(gy, gx)
            detail[i] += size.std() / len(maps)
    for weight in (0.4, 0.0):
        want, left = weight * detail, set(range(10))
        while left:
            sums = {c: sum(abs(similarity[c, other]) for other in left) for c in left}
            worst = max(sums, key=lambda c: (sums[c], -c))
            want[worst] -= sums[worst]
            left.remove(worst)
        got = scored(model, "sirfp", detail=weight)["b.0"]
        np.testing.assert_allclose(got - got.min(), want - want.min(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("elementwise", [False, True])
@pytest.mark.parametrize("name", ["residual", "plain"])
def test_fgp_by_loops_over_images_and_classes(name: str, *, elementwise: bool) -> None:
    model = net(name)
    layer, group = (model.b[1], "b.0") if name == "residual" else (model.body[1], "body.0")
    total = np.zeros(trace(model, X).by_name[group].width)
    for x, _ in batches():
        for image in x:
            kept: list[Tensor] = []
            handle = layer.register_forward_hook(lambda _m, _i, out, kept=kept: kept.append(out))
            logits = model(image[None])
            handle.remove()
            for label in range(logits.shape[1]):
                where = logits.argmax(1) == label
                if where.any():
                    (gradient,) = torch.autograd.grad(logits[:, label][where].sum(), kept[0], retain_graph=True)
                    weight = gradient if elementwise else gradient.mean((2, 3), keepdim=True)
                    total += (weight * kept[0]).relu().mean((2, 3))[0].detach().numpy()
    np.testing.assert_allclose(scored(model, "fgp", elementwise=elementwise)[group], total / 8, rtol=1e-5)


def test_what_is_missing_is_told() -> None:
    model = net()
    graph = trace(model, X)
    for criterion in ("fgp", "sirfp", "l1_corr"):
        with pytest.raises(ConfigError, match=f"criterion '{criterion}' needs batches: pass data="):
            score(model, graph, criterion)
        with pytest.raises(DataError, match="no batches"):
            score(model, graph, criterion, data=[])
    with pytest.raises(ConfigError, match="labelled batches"):
        score(model, graph, "taylor_bn", data=batches())


def test_sirfp_while_a_copy_learns_is_an_exponential_mean() -> None:
    """By hand: the copy's maps before each step, its steps those of SGD with momentum."""
    model = zoo.build("residual")
    graph = trace(model, torch.zeros(zoo.SHAPE))
    batches = [(torch.randn(6, *zoo.SHAPE[1:]), torch.randint(0, 5, (6,))) for _ in range(2)]
    given = {"data": batches, "loss": nn.functional.cross_entropy}
    found = score(model, graph, "sirfp", options={"steps": 3, "momentum": 0.5, "lr": 0.05, "detail": 0.0}, **given)
    copy_: Any = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(copy_.parameters(), lr=0.05, momentum=0.9)
    total, weight = np.zeros((10, 10)), 0.0
    for x, y in [*batches, batches[0]]:
        maps: list[Tensor] = []
        handle = copy_.b[1].register_forward_hook(lambda _m, _i, out, kept=maps: kept.append(out.detach()))
        loss = nn.functional.cross_entropy(copy_(x), y)
        handle.remove()
        flat = maps[0].flatten(2)
        flat = flat / (flat.abs().sum(2, keepdim=True) + 1e-5)
        total = 0.5 * total + torch.einsum("bip,bjp->ij", flat, flat).double().numpy() / 6
        weight = 0.5 * weight + 1
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    left, scores = list(range(10)), np.zeros(10)
    similarity = np.abs(total / weight)
    while left:
        sums = {c: similarity[c, left].sum() for c in left}
        worst = max(sums, key=lambda c: sums[c])
        scores[worst] = -sums[worst]
        left.remove(worst)
    ours = found["b.0"] - found["b.0"].max()
    np.testing.assert_allclose(ours, scores - scores.max(), rtol=1e-3, atol=1e-7)
    with pytest.raises(ConfigError, match="needs labelled batches and a loss"):
        score(model, graph, "sirfp", data=batches, options={"steps": 3})


def test_sirfp_leaves_out_the_detail_of_decoders() -> None:
    model = zoo.build("residual")
    graph = trace(model, torch.zeros(zoo.SHAPE))
    batches = [(torch.randn(6, *zoo.SHAPE[1:]), None)]
    with_all, without, mixed = (score(model, graph, "sirfp", data=batches, options=options)
                                for options in ({}, {"detail": 0.0}, {"decoder": "b.*"}))  # fmt: skip
    lowest = [min(v.min() for v in scores.values()) for scores in (with_all, without, mixed)]
    assert lowest == [0, 0, 0]

    def shape(values: Any) -> Any:
        return values - values.max()

    np.testing.assert_allclose(shape(mixed["b.0"]), shape(without["b.0"]), atol=1e-6)
    np.testing.assert_allclose(shape(mixed["a.0"]), shape(with_all["a.0"]), atol=1e-6)
    with pytest.raises(ConfigError, match="no group matches 'c"):
        score(model, graph, "sirfp", data=batches, options={"decoder": "c.*"})
