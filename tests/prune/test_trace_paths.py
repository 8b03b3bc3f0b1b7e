"""Forwards that take another path on other data, batches or states, and copies that use the model itself."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oracle import random_plan, randomize, silence
from patterns import Net, conv
from pydeploy.errors import ConfigError, TraceError
from pydeploy.prune.structure.trace import trace
from pydeploy.prune.surgery.absorb import channel_means
from pydeploy.prune.surgery.apply import apply

SHAPE = (2, 3, 8, 8)
STORE: dict[str, Any] = {}
ITSELF: list[nn.Module] = []


def built(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return randomize(make()).double().eval()


def same_on(make: Callable[[], nn.Module], example: Tensor, series: list[list[Tensor]], prunable: set[str]) -> None:
    """Cut equals silenced on every series of inputs, each on a model that has not run before."""
    graph = trace(built(make), example)
    assert {group.name for group in graph.prunable} == prunable, graph.frozen
    for seed, inputs in enumerate(series):
        STORE.clear()
        dense = built(make)
        plan = random_plan(graph, np.random.default_rng(seed))
        small = apply(dense, graph, plan)
        silence(dense, graph, plan)
        with torch.no_grad():
            got = [small(x) for x in inputs]
            STORE.clear()
            want = [dense(x) for x in inputs]
        for one, two in zip(got, want, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-9)


def _on_mean(m: Any, x: Tensor) -> Tensor:
    return m.d(m.b(m.a(x)) if x.mean() > 0 else m.c(m.a(x)))


def _on_number(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.d(m.b(y)) if float(x.max()) > 0.5 else m.d(m.c(y))


def _on_activations(m: Any, x: Tensor) -> Tensor:
    """An early exit that depends on the activations."""
    y = m.a(x)
    early = m.d(y)
    return early if early.abs().mean() > 1e3 else m.d(m.b(y) + m.c(y))


def _nested(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    if (x.mean() > 0).item():
        y = m.b(y) if bool(x[0].mean() > 0) else m.c(y)
    return m.d(y)


def _on_batch(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.d(m.b(y) if x.shape[0] > 2 else m.c(y))


def parts() -> dict[str, nn.Module]:
    return {"a": conv(3, 8), "b": conv(8, 8), "c": conv(8, 8), "d": conv(8, 2)}


BRANCHES = {
    "mean": _on_mean,
    "number": _on_number,
    "activations": _on_activations,
    "nested": _nested,
    "batch": _on_batch,
}


@pytest.mark.parametrize("name", BRANCHES)
def test_all_branches_are_cut(name: str) -> None:
    x = torch.rand(SHAPE, dtype=torch.float64)
    y = torch.randn(4, *SHAPE[1:], dtype=torch.float64)
    mixed = torch.cat([-x[:1], 3 * x[1:]])
    inputs = [[x], [-x], [y], [-y], [x[:1]], [mixed], [0 * x]]
    make = lambda: Net(BRANCHES[name], **parts())  # noqa: E731
    for example in (x, 0 * x):
        prunable = {g.name for g in trace(built(make), example).prunable}
        assert "a" in prunable
        same_on(make, example, inputs, prunable)


def _recurrent(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    y = m.c(y) if m.h is None else m.b(torch.cat([y, m.h], 1))
    m.h = y
    return m.d(y)


def _running(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    m.h = y if m.h is None else 0.5 * (m.h + y)
    return m.d(m.h)


def test_states_that_are_absent_at_first() -> None:
    def recurrent() -> nn.Module:
        return Net(_recurrent, a=conv(3, 8), b=conv(16, 8), c=conv(8, 8), d=conv(8, 2), h=None)

    x = [torch.randn(SHAPE, dtype=torch.float64) for _ in range(3)]
    same_on(recurrent, x[0], [x, x[1:]], {"a", "c"})
    same_on(lambda: Net(_running, a=conv(3, 8), d=conv(8, 2), h=None), x[0], [x], {"a"})


def _kept_globally(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    if "scale" not in STORE:
        STORE["scale"] = y.mean((0, 2, 3), keepdim=True)
    return m.d(y * STORE["scale"])


def _passed_globally(m: Any, x: Tensor) -> Tensor:
    STORE["y"] = m.a(x)
    return m.d(F.relu(STORE["y"]))


class Counting(nn.Module):
    """State in the class."""

    seen: ClassVar[list[Any]] = []
    runs = 0

    def __init__(self) -> None:
        super().__init__()
        self.a, self.d = conv(3, 8), conv(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        type(self).runs += 1
        type(self).seen.append(self.a(x))
        return self.d(self.seen[-1])


def test_state_outside_of_the_model_is_put_back() -> None:
    x = torch.randn(SHAPE, dtype=torch.float64)
    STORE.clear()
    assert "kept outside" in trace(built(lambda: Net(_kept_globally, a=conv(3, 8), d=conv(8, 2))), x).frozen["a"]
    assert not STORE
    same_on(lambda: Net(_passed_globally, a=conv(3, 8), d=conv(8, 2)), x, [[x], [x[:1]]], {"a"})
    STORE.clear()
    graph = trace(built(Counting), x)
    assert {g.name for g in graph.prunable} == {"a"}
    assert not Counting.seen
    assert Counting.runs == 0


class Global(nn.Module):
    """Its hook finds the model by a global name, which no copy can change."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.d, self.got = conv(3, 8), conv(8, 2), {}
        self.a.register_forward_hook(_global_hook)

    def forward(self, x: Tensor) -> Tensor:
        self.a(x)
        return self.d(self.got.get("a", torch.zeros(2, 8, 8, 8, dtype=x.dtype)))


def _global_hook(_m: nn.Module, _i: Any, out: Tensor) -> None:
    ITSELF[0].got["a"] = out


class Calling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.d = conv(3, 8), conv(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(ITSELF[0].a(x))


class Reading(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.d, self.got = conv(3, 8), conv(8, 2), {"a": torch.zeros(2, 8, 8, 8).double()}
        self.a.register_forward_hook(lambda _m, _i, out: self.got.update(a=out))

    def forward(self, x: Tensor) -> Tensor:
        self.a(x)
        return self.d(ITSELF[0].got["a"])


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Global, r"wrote into 'got'.*hook '_global_hook' of 'a' by the name 'ITSELF'"),
        (Calling, r"uses 'a' of the model itself.*'Calling.forward' by the name 'ITSELF'"),
        (Reading, r"uses 'got.a' of the model itself.*'Reading.forward' by the name 'ITSELF'"),
    ],
)
def test_copies_that_use_the_model_itself_are_refused(kind: type[nn.Module], text: str) -> None:
    model = built(kind)
    ITSELF[:] = [model]
    before = dict(model.got) if hasattr(model, "got") else {}
    with pytest.raises(TraceError, match=text):
        trace(model, torch.randn(SHAPE, dtype=torch.float64))
    assert before == (model.got if before else {})
    ITSELF.clear()


def test_random_paths_are_refused() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        for _ in range(random.randrange(1000)):
            y = F.relu(y)
        return m.d(y)

    state = random.getstate()
    with pytest.raises(TraceError, match="two runs of the model differ"):
        trace(Net(forward, **parts()), torch.zeros(SHAPE))
    assert random.getstate() == state


def test_inference_mode_changes_nothing() -> None:
    make = lambda: Net(lambda m, x: m.d(F.relu(m.a(x))), a=conv(3, 8), d=conv(8, 2))  # noqa: E731
    expected = trace(make(), torch.zeros(SHAPE))
    with torch.inference_mode():
        assert trace(make(), torch.zeros(SHAPE)) == expected
        model = built(make)
        small = apply(model, expected, random_plan(expected, np.random.default_rng(0)))
    assert not any(p.is_inference() for p in small.parameters())


def test_keyword_arguments() -> None:
    model = Net(lambda m, x: m.d(m.a(x)), a=conv(3, 8), d=conv(8, 2))
    model.forward = lambda image, scale=None: model.d(model.a(image) * (1 if scale is None else scale))
    plain = trace(model, torch.zeros(SHAPE))
    assert trace(model, example_kwargs={"image": torch.zeros(SHAPE)}) == plain
    assert trace(model, torch.zeros(SHAPE), example_kwargs={"scale": 2.0}).prunable == plain.prunable
    with pytest.raises(ConfigError, match="example_kwargs="):
        trace(model, {"image": torch.zeros(SHAPE)})


def test_reasons_that_say_what_to_do() -> None:
    inner = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(inner)
    with pytest.raises(TraceError, match=r"ScriptModule.*trace the Python model"):
        trace(scripted, torch.zeros(SHAPE))
    graph = trace(nn.Sequential(conv(3, 3), scripted, conv(4, 6), conv(6, 2)).eval(), torch.zeros(SHAPE))
    assert {g.name for g in graph.prunable} == {"2"}

    def lazy(m: Any, x: Tensor) -> Tensor:
        if not hasattr(m, "e"):
            m.e = conv(8, 2)
        return m.e(m.a(x))

    model = Net(lazy, a=conv(3, 8))
    with pytest.raises(TraceError, match=r"parameter 'e.weight' in its first run; run the model once"):
        trace(model, torch.zeros(SHAPE))
    model(torch.zeros(SHAPE))
    assert {g.name for g in trace(model, torch.zeros(SHAPE)).prunable} == {"a"}
    with pytest.raises(TraceError, match="load_state_dict"):
        trace(conv(3, 8).to("meta"), torch.zeros(SHAPE))


class Merging(nn.Module):
    """RepVGG: a method that the forward does not call makes matrices of the kept widths."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.kernel = cin, cout, 3
        self.k, self.one, self.n = conv(cin, cout), conv(cin, cout, 1), nn.BatchNorm2d(cout)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.n(self.k(x) + self.one(x)))

    def merged(self) -> Tensor:
        whole = torch.zeros(self.out_channels, self.in_channels, 3, 3, dtype=self.k.weight.dtype)
        whole[:, :, 1, 1] = self.one.weight[:, :, 0, 0]
        return self.k.weight + whole


class Unnamed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.width, self.a, self.b = 8, conv(8, 8), conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))

    def eye(self) -> Tensor:
        return torch.eye(self.width)


def test_numbers_that_the_forward_does_not_read() -> None:
    model = built(lambda: nn.Sequential(Merging(3, 8), Merging(8, 8), Merging(8, 12), conv(12, 2)))
    graph = trace(model, torch.zeros(SHAPE, dtype=torch.float64))
    small = apply(model, graph, random_plan(graph, np.random.default_rng(0)))
    for before, after in zip(model[:3], small[:3], strict=True):
        assert after.merged().shape == after.k.weight.shape != before.k.weight.shape
        assert after.kernel == 3
    assert small[0].in_channels == 3
    with pytest.warns(UserWarning, match="'1.width': as large as several widths"):
        trace(nn.Sequential(conv(3, 8), Unnamed(), conv(8, 2)), torch.zeros(SHAPE))


class Merged(nn.Module):
    """Adapters merge into the weight in eval mode and leave it in training mode, with rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.d = conv(3, 8), conv(8, 2)
        self.low, self.high = nn.Parameter(torch.randn(8, 2)), nn.Parameter(torch.randn(2, 27))

    def train(self, mode: bool = True) -> Merged:
        if mode != self.training:
            added = (self.low @ self.high).view_as(self.a.weight)
            self.a.weight.data += -added if mode else added
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(F.relu(self.a(x)))


def test_modes_that_do_more_than_switch() -> None:
    model = Merged()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = trace(model, torch.zeros(SHAPE))
    channel_means(model, graph, [torch.randn(SHAPE)])
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())

    from torchvision.models.feature_extraction import create_feature_extractor

    extractor = create_feature_extractor(nn.Sequential(conv(3, 8), nn.Dropout(0.5), conv(8, 2)), {"2": "y"})
    graph = trace(extractor, torch.zeros(SHAPE))
    channel_means(extractor, graph, [torch.randn(SHAPE)])
    assert extractor.graph is extractor.train_graph
    assert all(module.training for module in extractor.modules())


def test_experts_that_no_run_chose_are_named() -> None:
    def choosing(count: int) -> nn.Module:
        def forward(m: Any, x: Tensor) -> Tensor:
            y = m.a(x)
            return m.d(m.e[int(m.r(y.mean((2, 3))).mean(0).argmax())](y))

        experts = nn.ModuleList([conv(8, 6) for _ in range(count)])
        return Net(forward, a=conv(3, 8), r=nn.Linear(8, count), e=experts, d=conv(6, 2))

    x = [torch.randn(SHAPE, dtype=torch.float64) * 9 for _ in range(6)]
    graph = trace(built(lambda: choosing(3)), x[0])
    assert "a" in {g.name for g in graph.prunable}
    assert {"e.0.weight", "e.1.weight", "e.2.weight"} <= {s.param for g in graph.prunable for s in g.slices}
    same_on(lambda: choosing(3), x[0], [[y] for y in x], {g.name for g in graph.prunable})
    with pytest.warns(UserWarning, match=r"no run of it read 'e\.[0-8].weight'"):
        trace(built(lambda: choosing(9)), x[0])


def test_state_in_a_buffer() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        m.n += 1
        out = m.d(y + m.h)
        m.h = 0.5 * m.h + y.mean((0, 2, 3), keepdim=True)
        return out

    def stateful() -> nn.Module:
        model = Net(forward, a=conv(3, 8), d=conv(8, 2))
        model.register_buffer("h", torch.zeros(1, 8, 1, 1))
        model.register_buffer("n", torch.tensor(0))
        return model

    x = [torch.randn(SHAPE, dtype=torch.float64) for _ in range(3)]
    model = built(stateful)
    trace(model, x[0])
    assert int(model.n) == 0
    assert not model.h.any()
    same_on(stateful, x[0], [x], {"a"})
