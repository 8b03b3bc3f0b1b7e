"""Models that keep state, functions and modules beside PyTorch's tables: hooks by closure, caches, wrappers; inputs are (2, 3, 8, 8)."""

from __future__ import annotations

import collections
import dataclasses
import functools
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from patterns import Net, conv

GLOBAL_STORE: dict[str, Any] = {}


class Features(nn.Module):
    """The output is what hooks of an inner layer left; `attach` says how the hook sees the model."""

    def __init__(self, attach: Callable[[Features], Callable[..., Any]]) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 8), conv(8, 6), conv(8, 4)
        self.got: dict[str, Any] = {"a": torch.empty(0)}
        self.a.register_forward_hook(attach(self))

    def keep(self, _module: nn.Module, _inputs: Any, out: Tensor) -> None:
        self.got["a"] = out

    def forward(self, x: Tensor) -> Tensor:
        self.b(self.a(x))
        return self.c(F.relu(self.got["a"]))


def _closure(model: Features) -> Callable[..., Any]:
    def hook(_m: nn.Module, _i: Any, out: Tensor) -> None:
        model.got["a"] = out

    return hook


def _closure_of_closure(model: Features) -> Callable[..., Any]:
    store = _closure(model)

    @functools.wraps(store)
    def hook(*args: Any) -> None:
        store(*args)

    return hook


def _default(model: Features) -> Callable[..., Any]:
    return lambda _m, _i, out, got=model.got: got.__setitem__("a", out)


def _keyword_default(model: Features) -> Callable[..., Any]:
    def hook(_m: nn.Module, _i: Any, out: Tensor, *, owner: Features = model) -> None:
        owner.got["a"] = out

    return hook


def _store(got: dict[str, Any], name: str, _m: nn.Module, _i: Any, out: Tensor) -> None:
    got[name] = out


def _weak(model: Features) -> Callable[..., Any]:
    reference = weakref.ref(model)

    def hook(_m: nn.Module, _i: Any, out: Tensor) -> None:
        owner = reference()
        assert owner is not None
        owner.got["a"] = out

    return hook


def _proxy(model: Features) -> Callable[..., Any]:
    reference = weakref.proxy(model)
    return lambda _m, _i, out: reference.got.__setitem__("a", out)


def _c_method(model: Features) -> Callable[..., Any]:
    put = model.got.__setitem__
    return lambda _m, _i, out: put("a", out)


class Recorder:
    """Somebody else's object whose bound method is the hook."""

    def __init__(self, model: Features) -> None:
        self.model, self.calls = model, 0

    def hook(self, _m: nn.Module, _i: Any, out: Tensor) -> None:
        self.calls += 1
        self.model.got["a"] = out


@dataclasses.dataclass
class Slots:
    __slots__ = ("target",)
    target: dict[str, Any]

    def __call__(self, _m: nn.Module, _i: Any, out: Tensor) -> None:
        self.target["a"] = out


class Nested(nn.Module):
    """The hook of an inner extractor sees the outer model and a sibling."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Features(_closure)
        self.side = conv(4, 5)
        side = self.side
        self.inner.c.register_forward_hook(lambda _m, _i, out: side(out))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def _wrapped_forward() -> nn.Module:
    model = Net(lambda m, x: m.c(F.relu(m.a(x))), a=conv(3, 8), c=conv(8, 4))
    before = model.a.forward
    model.a.forward = lambda x: before(x) * 2
    return model


def _method_of_the_instance() -> nn.Module:
    model = Net(lambda m, x: m.c(m.a(x)), a=conv(3, 8), b=conv(8, 8), c=conv(8, 4))

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(self.a(x))))

    model.forward = types.MethodType(forward, model)
    return model


def _private_store() -> nn.Module:
    """Nobody but two functions in the model knows the store."""
    store: dict[str, Tensor] = {}
    model = Net(lambda m, x: (m.a(x), m.c(m.read()))[1], a=conv(3, 8), c=conv(8, 4))
    model.a.register_forward_hook(lambda _m, _i, out: store.update(a=out))
    model.read = lambda: store["a"]
    return model


def _skip_by_hooks() -> nn.Module:
    """One hook keeps a map, another adds it."""
    kept: dict[str, Tensor] = {}
    model = Net(lambda m, x: m.c(m.b(F.relu(m.a(x)))), a=conv(3, 8), b=conv(8, 8), c=conv(8, 4))
    model.a.register_forward_hook(lambda _m, _i, out: kept.update(a=out))
    model.b.register_forward_hook(lambda _m, _i, out: out + kept["a"])
    return model


def _counted() -> nn.Module:
    count = 0

    def forward(m: Any, x: Tensor) -> Tensor:
        nonlocal count
        count += 1
        m.count = count
        return m.c(m.a(x))

    return Net(forward, a=conv(3, 8), c=conv(8, 4), count=0)


def _partial_forward() -> nn.Module:
    model = Net(lambda m, x: m.c(m.step(x)), a=conv(3, 8), c=conv(8, 4))
    model.step = functools.partial(lambda owner, x: F.relu(owner.a(x)), model)
    return model


def _cached_method() -> nn.Module:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c = conv(3, 8), conv(8, 4)
            self.scale = functools.lru_cache(maxsize=4)(self._scale)

        def _scale(self, height: int) -> Tensor:
            return self.a.weight.abs().sum((1, 2, 3)).view(1, -1, 1, 1) / height

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.a(x) * self.scale(x.shape[2]))

    return Cached()


def _list_of_modules() -> nn.Module:
    """Layers that PyTorch does not know of stay whole."""
    return Net(
        lambda m, x: m.c(F.relu(m.a(m.hidden[0]["x"](x)))),
        hidden=[{"x": conv(3, 5).double()}],
        a=conv(5, 8),
        c=conv(8, 4),
    )


Pair = collections.namedtuple("Pair", "first second")


@dataclasses.dataclass(frozen=True)
class Config:
    width: int
    layers: Any


def _held_by_objects() -> nn.Module:
    return Net(
        lambda m, x: m.c(m.config.layers[0](m.pair.first(x))),
        pair=Pair(conv(3, 5).double(), None),
        config=Config(5, [nn.BatchNorm2d(5).double().eval()]),
        c=conv(5, 4),
    )


def _thread_local() -> nn.Module:
    model = Net(
        lambda m, x: (setattr(m.local, "x", m.a(x)), m.c(m.local.x))[1],
        local=threading.local(),
        a=conv(3, 8),
        c=conv(8, 4),
    )
    model.lock, model.rlock, model.generator = threading.Lock(), threading.RLock(), torch.Generator()
    model.module_of_python, model.queue = torch, collections.deque([1, 2], maxlen=3)
    model.table = collections.defaultdict(list, {"x": [1]})
    return model


def _left_results() -> nn.Module:
    """A model that ran before and kept results with their history."""
    model = Features(_closure)
    model.last = model(torch.randn(2, 3, 8, 8))
    return model


def _first_call_cache() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        if m.mask is None:
            m.mask = torch.ones(y.shape[2:])
        return m.c(y * m.mask)

    return Net(forward, a=conv(3, 8), c=conv(8, 4), mask=None)


def _buffer_in_forward() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        if not hasattr(m, "grid"):
            m.register_buffer("grid", torch.ones(y.shape[-1]))
        return m.c(y * m.grid)

    return Net(forward, a=conv(3, 8), c=conv(8, 4))


def _observed() -> nn.Module:
    """Hooks on everything, the state dict included, that change nothing."""
    model = Net(lambda m, x: m.c(F.relu(m.a(x))), a=conv(3, 8), c=conv(8, 4))
    model.a.register_full_backward_hook(lambda m, _i, _o: setattr(m, "ran_back", True))
    model.a.register_forward_pre_hook(lambda m, _i, _k: setattr(m, "ran", True), with_kwargs=True)
    model._register_load_state_dict_pre_hook(lambda *_a: None)
    model.register_load_state_dict_post_hook(lambda m, _keys: setattr(m, "loaded", True))
    model.register_state_dict_pre_hook(lambda _m, _prefix, _keep: None)
    return model


class Doubling(nn.Module):
    """A parametrization with state."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def forward(self, weight: Tensor) -> Tensor:
        self.calls.append(1)
        return weight * 2


def _parametrized() -> nn.Module:
    model = Net(lambda m, x: m.c(F.relu(m.a(x))), a=conv(3, 8), c=conv(8, 4))
    nn.utils.parametrize.register_parametrization(model.a, "weight", Doubling())
    return model


def _no_grad_inside() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = m.a(x)
        return m.c(y.clone())

    return Net(forward, a=conv(3, 8), c=conv(8, 4))


def _graph_module() -> nn.Module:
    from torchvision.models.feature_extraction import create_feature_extractor

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.n, self.c, self.d = conv(3, 8), nn.BatchNorm2d(8), conv(8, 4), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.d(self.c(F.relu(self.n(self.a(x)))))

    return create_feature_extractor(Body(), {"c": "c"})


WRAPPED: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "closure": (lambda: Features(_closure), {"a", "b"}),
    "closure_of_closure": (lambda: Features(_closure_of_closure), {"a", "b"}),
    "bound_method": (lambda: Features(lambda m: m.keep), {"a", "b"}),
    "default": (lambda: Features(_default), {"a", "b"}),
    "keyword_default": (lambda: Features(_keyword_default), {"a", "b"}),
    "partial": (lambda: Features(lambda m: functools.partial(_store, m.got, "a")), {"a", "b"}),
    "weak": (lambda: Features(_weak), {"a", "b"}),
    "proxy": (lambda: Features(_proxy), {"a", "b"}),
    "c_method": (lambda: Features(_c_method), {"a", "b"}),
    "other_object": (lambda: Features(lambda m: Recorder(m).hook), {"a", "b"}),
    "callable_object": (lambda: Features(lambda m: Slots(m.got)), {"a", "b"}),
    "nested": (Nested, {"inner.a", "inner.b", "inner.c"}),
    "wrapped_forward": (_wrapped_forward, {"a"}),
    "method_of_the_instance": (_method_of_the_instance, {"a", "b"}),
    "private_store": (_private_store, {"a"}),
    "skip_by_hooks": (_skip_by_hooks, {"a"}),
    "counted": (_counted, {"a"}),
    "partial_forward": (_partial_forward, {"a"}),
    "cached_method": (_cached_method, {"a"}),
    "list_of_modules": (_list_of_modules, {"a"}),
    "held_by_objects": (_held_by_objects, set()),
    "thread_local": (_thread_local, {"a"}),
    "left_results": (_left_results, {"a", "b"}),
    "first_call_cache": (_first_call_cache, {"a"}),
    "buffer_in_forward": (_buffer_in_forward, {"a"}),
    "observed": (_observed, {"a"}),
    "parametrized": (_parametrized, {"a.parametrizations.weight.original"}),
    "no_grad_inside": (_no_grad_inside, {"a"}),
    "graph_module": (_graph_module, {"a"}),
    "weight_norm_new": (
        lambda: Net(lambda m, x: m.c(F.relu(m.a(x))), a=weight_norm(conv(3, 8)), c=conv(8, 4)),
        {"a.parametrizations.weight.original1"},
    ),
}
"""Model and the layers whose groups are prunable."""
