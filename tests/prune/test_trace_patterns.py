"""Every structural pattern: cut equals silenced, the prunable groups are the expected ones, the rest says why."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from oracle import random_plan, randomize, silenced_output, tensors_of
from patterns import PATTERNS, Net, conv
from pydeploy.errors import ConfigError, Mismatch, TraceError
from pydeploy.plan import Plan
from pydeploy.prune.structure.trace import trace
from pydeploy.prune.surgery.apply import apply

SHAPE = (2, 3, 8, 8)


def close(model: nn.Module, seed: int, *shapes: tuple[int, ...]) -> None:
    """Oracle: the silenced dense model, in float64; re-tracing the cut model finds its tensors."""
    inputs = tuple(torch.randn(shape, dtype=torch.float64) for shape in shapes or (SHAPE,))
    graph = trace(model, inputs)
    plan = random_plan(graph, np.random.default_rng(seed))
    small = apply(model, graph, plan)
    with torch.no_grad():
        for got, expected in zip(
            tensors_of(small(*inputs)), tensors_of(silenced_output(model, graph, plan, *inputs)), strict=True
        ):
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)
    assert trace(small, inputs).macs() == graph.macs(plan.widths)


@pytest.mark.parametrize("name", PATTERNS)
def test_cut_equals_silenced(name: str) -> None:
    torch.manual_seed(0)
    model = randomize(PATTERNS[name][0]()).double().eval()
    for seed in range(3):
        close(model, seed)


@pytest.mark.parametrize("name", PATTERNS)
def test_groups_found(name: str) -> None:
    graph = trace(PATTERNS[name][0](), torch.zeros(SHAPE))
    assert {group.name for group in graph.prunable} == PATTERNS[name][1]
    assert all(" " in reason for reason in graph.frozen.values())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hard_coded", r"view at .*fixed in the code|fails when channels are cut"),
        ("width_in_number", "number computed from the width"),
        ("branch_on_width", "when channels are cut"),
        ("channel_pad", "channels are padded"),
        ("written_part", "writes into a part"),
    ],
)
def test_frozen_groups_name_operator_and_reason(name: str, text: str) -> None:
    import re

    graph = trace(PATTERNS[name][0](), torch.zeros(SHAPE))
    assert re.search(text, graph.frozen["a"]), graph.frozen


@pytest.mark.parametrize("name", ["residual", "plain", "scaled"])
def test_training_mode_changes_nothing(name: str) -> None:
    """Dropout and batch statistics are no part of the structure, and the trace leaves them as they are."""
    model = zoo.build(name)
    expected = trace(model, torch.zeros(zoo.SHAPE))
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert trace(model, torch.zeros(zoo.SHAPE)) == expected
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_whole_heads_and_norm_groups() -> None:
    graph = trace(PATTERNS["attention"][0](), torch.zeros(SHAPE))
    assert graph.by_name["qkv"].width == 3
    assert trace(PATTERNS["group_norm"][0](), torch.zeros(SHAPE)).by_name["a"].width == 4
    assert "group_norm" in trace(PATTERNS["group_norm_of_all"][0](), torch.zeros(SHAPE)).by_name["a"].inexact
    assert "layer_norm" in trace(PATTERNS["layer_norm"][0](), torch.zeros(SHAPE)).by_name["a"].inexact
    standardized = trace(PATTERNS["weight_standardization"][0](), torch.zeros(SHAPE))
    assert "statistics run over its kept inputs" in standardized.by_name["a"].inexact
    assert standardized.by_name["b"].inexact == ""


def test_several_inputs() -> None:
    model = Net(lambda m, x, y: m.c(m.a(x) + m.b(y)), a=conv(3, 6), b=conv(2, 6), c=conv(6, 3)).double().eval()
    close(model, 1, SHAPE, (2, 2, 8, 8))


def test_models_that_need_values_are_run_with_values() -> None:
    def forward(m, x):
        y = m.a(x)
        return m.c(y if float(x.sum()) > 0 else -y)

    model = Net(forward, a=conv(3, 6), c=conv(6, 3)).eval()
    assert [g.name for g in trace(model, torch.ones(SHAPE)).prunable] == ["a"]


def test_hooks_flags_and_the_model_itself_stay() -> None:
    model = Net(lambda m, x: m.c(F_relu(m.a(x))), a=conv(3, 6), c=conv(6, 3)).train()
    seen = []
    model.a.register_forward_hook(lambda _m, _i, out: seen.append(tuple(out.shape)))
    model.a.weight.requires_grad_(requires_grad=False)
    before = {name: (id(t), t.clone()) for name, t in model.state_dict(keep_vars=True).items()}
    small = apply(model, graph := trace(model, torch.zeros(SHAPE)), Plan({"a": (0, 2)}, graph.fingerprint))
    seen.clear()
    small(torch.zeros(SHAPE))
    assert seen == [(2, 2, 8, 8)]
    assert not small.a.weight.requires_grad
    assert model.training
    assert small.training
    after = model.state_dict(keep_vars=True)
    assert all(id(after[name]) == key and torch.equal(after[name], value) for name, (key, value) in before.items())


def F_relu(x):  # noqa: N802
    return nn.functional.relu(x)


def test_what_fails_with_one_channel_keeps_two() -> None:
    """The second trial fails here (squeeze at width 1), the first passes; the output is frozen all the same."""
    model = PATTERNS["squeezed"][0]().eval()
    graph = trace(model, torch.zeros(SHAPE))
    assert graph.frozen == {"f": "model output"}
    assert graph.by_name["a"].min_width == 2
    with pytest.raises(Mismatch, match="keeps 1 channels of group 'a', where 2 must stay"):
        apply(model, graph, Plan({"a": (3,)}, graph.fingerprint))


def test_limits_of_groups() -> None:
    model = Net(lambda m, x: m.c(m.b(m.a(x))), a=conv(3, 8), b=conv(8, 8), c=conv(8, 3))
    graph = trace(model, torch.zeros(SHAPE), exclude=("b*",), min_width=2, align={"a": 4})
    assert graph.frozen["b"] == "excluded by 'b*'"
    assert (graph.by_name["a"].min_width, graph.by_name["a"].align) == (2, 4)
    with pytest.raises(ConfigError, match="at least 1"):
        trace(model, torch.zeros(SHAPE), align=0)


def _moody(m, x):
    m.count = getattr(m, "count", 0) + 1
    return m.c(torch.relu(m.a(x)) if m.count % 2 else torch.tanh(m.a(x)))


def _training(m, x):
    with torch.no_grad():
        m.a.weight.mul_(0.5)
    return m.c(m.a(x))


def test_bad_models_are_refused() -> None:
    def net(forward):
        return Net(forward, a=conv(3, 6), c=conv(6, 3))

    with pytest.raises(TraceError, match=r"two runs of the model differ: (relu|tanh) at"):
        trace(net(_moody), torch.zeros(SHAPE))
    model = net(_training)
    weight = model.a.weight.clone()
    with pytest.raises(TraceError, match=r"changes parameter 'a.weight'"):
        trace(model, torch.zeros(SHAPE))
    assert torch.equal(model.a.weight, weight)
    with pytest.raises(TraceError, match=r"'a.weight' is a meta tensor"):
        trace(net(_moody).to("meta"), torch.zeros(SHAPE))
    sparse = net(_moody)
    sparse.register_buffer("s", torch.eye(3).to_sparse())
    with pytest.raises(TraceError, match="'s' is a sparse tensor"):
        trace(sparse, torch.zeros(SHAPE))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_quantized_models_are_refused() -> None:
    quantized = Net(_moody, a=conv(3, 6), c=conv(6, 3))
    quantized.register_buffer("q", torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8))
    with pytest.raises(TraceError, match="'q' is quantized"):
        trace(quantized, torch.zeros(SHAPE))


def test_parameters_on_one_memory_stay() -> None:
    model = Net(lambda m, x: m.c(m.a(x)) + m.c(m.b(x)), a=conv(3, 6), b=conv(3, 6), c=conv(6, 3))
    model.b.weight = nn.Parameter(model.a.weight.data)
    assert "shares its memory" in trace(model, torch.zeros(SHAPE)).frozen["a"]


@pytest.mark.parametrize(
    ("channels", "units", "width"), [(12, 1, 6), (20, 2, 5), (16, 3, 2), (28, 3, 3), (36, 3, 4), (24, 4, 0)]
)
def test_a_stream_shuffled_and_halved_again_and_again(channels: int, units: int, width: int) -> None:
    """Like ShuffleNetV2: every unit passes one half on and computes the other anew. Widths by hand: after u units entry e of the
    stream follows channel e >> u, and halves must stay equal. With 28 channels and 3 units: i with i + 14; i with i + 7; then
    channel 3 lies in both halves and only 0, 1, 2 meet 4, 5, 6.
    """

    def forward(m, x):
        x = m.a(x)
        for i in range(units):
            passed, used = x.chunk(2, 1)
            x = nn.functional.channel_shuffle(torch.cat([passed, F_relu(getattr(m, f"b{i}")(used))], 1), 2)
        return m.c(x)

    half = channels // 2
    layers = {f"b{i}": conv(half, half, 1) for i in range(units)}
    net = randomize(Net(forward, a=conv(3, channels), **layers, c=conv(channels, 3))).double().eval()
    graph = trace(net, torch.zeros(SHAPE, dtype=torch.float64))
    assert [g.width for g in graph.prunable] == [width] * bool(width)
    for seed in range(3):
        close(net, seed)


def test_weights_of_any_memory_order() -> None:
    """Transposed memory, gaps, one value for all: the cut is that of the same values laid out plainly."""
    plain = (
        randomize(Net(lambda m, x: m.c(F_relu(m.b(m.a(x)))), a=conv(3, 8), b=conv(8, 8), c=conv(8, 3))).double().eval()
    )
    with torch.no_grad():
        plain.b.bias.fill_(0.3)
        gaps = torch.zeros(8, 16, 3, 3, dtype=torch.float64)
        gaps[:, ::2] = plain.b.weight
    model = copy.deepcopy(plain)
    model.a.weight = nn.Parameter(plain.a.weight.detach().transpose(0, 1).contiguous().transpose(0, 1))
    model.b.weight = nn.Parameter(gaps[:, ::2])
    model.b.bias = nn.Parameter(torch.full((1,), 0.3, dtype=torch.float64).expand(8))
    graph = trace(model, torch.zeros(SHAPE, dtype=torch.float64))
    plan = random_plan(graph, np.random.default_rng(0))
    assert set(plan.widths) == {"a", "b"}
    small, expected = apply(model, graph, plan), apply(plain, graph, plan)
    assert {k: v.tolist() for k, v in small.state_dict().items()} == {
        k: v.tolist() for k, v in expected.state_dict().items()
    }
    assert model.b.weight.stride()[1] == 18, "left as it was"
    close(model, 1)
