"""Export of any arguments and outputs: names tell where a tensor lies, values are PyTorch's, the rest is said in a sentence."""

from __future__ import annotations

import dataclasses
import warnings
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from patterns import Net, conv
from pydeploy.errors import ConfigError, DeployError, Mismatch, TraceError
from pydeploy.export import export
from pydeploy.export.check import difference
from pydeploy.prune.structure.trace import trace
from pydeploy.tasks.samples import under

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
X = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
Pair = namedtuple("Pair", "low high")


@dataclasses.dataclass
class Result:
    logits: Any
    loss: Any = None


def net(forward: Callable[..., Any]) -> nn.Module:
    torch.manual_seed(0)
    return Net(forward, a=conv(3, 3), b=conv(3, 4)).eval()


def named(tree: Any, name: str) -> dict[str, Tensor]:
    """Tensors of a result by their names, written down apart from the product."""
    if isinstance(tree, Tensor):
        return {name: tree}
    if isinstance(tree, dict):
        items = tree.items()
    elif hasattr(tree, "_fields"):
        items = zip(tree._fields, tree, strict=True)
    elif isinstance(tree, (list, tuple)):
        items = enumerate(tree)
    elif isinstance(tree, (Result, SimpleNamespace)):
        items = vars(tree).items()
    else:
        items = ()
    found: dict[str, Tensor] = {}
    for key, item in items:
        found |= named(item, f"{name}.{key}" if name else str(key))
    return found


def run(path: Path, feeds: list[Tensor]) -> dict[str, np.ndarray]:
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [spec.name for spec in session.get_inputs()]
    found = session.run(None, {name: t.numpy() for name, t in zip(names, feeds, strict=True)})
    return dict(zip([spec.name for spec in session.get_outputs()], found, strict=True))


def agrees(path: Path, feeds: list[Tensor], expected: dict[str, Tensor]) -> None:
    got = run(path, feeds)
    assert list(got) == list(expected)
    for name, want in expected.items():
        assert got[name].dtype == want.detach().numpy().dtype
        np.testing.assert_allclose(got[name], want.detach().numpy(), rtol=1e-4, atol=1e-5)


LEAVES: dict[str, Callable[[Any, Tensor], Any]] = {
    "conv": lambda m, x: m.a(x),
    "same conv": lambda m, x: m.b(x),
    "bool": lambda m, x: m.a(x) > 0.1,
    "integer": lambda m, x: m.b(x).argmax(1),
    "input": lambda m, x: x,
    "parameter": lambda m, x: m.a.weight,
    "constant": lambda m, x: torch.ones(3),
    "scalar": lambda m, x: m.a(x).mean(),
    "none": lambda m, x: None,
    "number": lambda m, x: 3,
    "text": lambda m, x: "text",
}
TREES = st.recursive(
    st.sampled_from(list(LEAVES)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.sampled_from(["out", "aux", "a.weight", "input", "relu", "conv2d", "0"]), inner, max_size=3),
        st.tuples(inner, inner).map(lambda pair: Pair(*pair)),
        st.tuples(inner, inner).map(lambda pair: Result(*pair)),
        inner.map(lambda value: SimpleNamespace(inside=[value])),
    ),
    max_leaves=6,
)


def made(tree: Any, m: Any, x: Tensor) -> Any:
    """The result that a drawn tree stands for."""
    if isinstance(tree, str):
        return LEAVES[tree](m, x)
    if isinstance(tree, dict):
        return {key: made(item, m, x) for key, item in tree.items()}
    if isinstance(tree, Pair):
        return Pair(*(made(item, m, x) for item in tree))
    if isinstance(tree, Result):
        return Result(made(tree.logits, m, x), made(tree.loss, m, x))
    if isinstance(tree, SimpleNamespace):
        return SimpleNamespace(inside=made(tree.inside, m, x))
    return type(tree)(made(item, m, x) for item in tree)


@settings(max_examples=25, deadline=None)
@given(tree=TREES)
def test_any_result(tmp_path_factory: pytest.TempPathFactory, tree: Any) -> None:
    model, path = net(lambda m, x: made(tree, m, x)), tmp_path_factory.mktemp("any") / "m.onnx"
    result = model(X)
    want = named(result, "output" if not isinstance(result, dict) else "")
    said: list[str] = []
    if not want:
        with pytest.raises(TraceError, match=r"the model returns .*; expected tensors"):
            export(model, X, path)
        return
    export(model, X, path, say=said.append)
    taken = {"input", *model.state_dict()}
    agrees(path, [X], {f"output.{name}" if name in taken else name: t for name, t in want.items()})
    assert all("not a tensor: left out" in text for text in said)


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 3)

    def forward(self, x: Tensor, *more: Tensor, mask: Tensor | None = None, **further: Any) -> Tensor:
        x = self.a(x)
        for other in [
            *more,
            *([] if mask is None else [mask]),
            *(v for v in further.values() if isinstance(v, Tensor)),
        ]:
            x = x * other
        return x


Y = X + 1
CALLS: dict[str, tuple[nn.Module, Any, dict[str, Any], list[str]]] = {
    "tensor": (net(lambda m, x: m.a(x)), X, {}, ["input"]),
    "none": (net(lambda m, x, y: m.a(x)), (X, None), {}, ["input"]),
    "number": (net(lambda m, x, k: m.a(x) * k), (X, 2.5), {}, ["input"]),
    "scalar": (net(lambda m, x, k: m.a(x) * k), (X, torch.tensor(2.0)), {}, ["inputs.0", "inputs.1"]),
    "text and truth": (net(lambda m, x, k, b: m.a(x) if b and k == "a" else x), (X, "a", True), {}, ["input"]),
    "list": (net(lambda m, xs: m.a(xs[0]) + xs[1]), ([X, Y],), {}, ["inputs.0.0", "inputs.0.1"]),
    "tuple": (net(lambda m, xs: m.a(xs[0]) + xs[1]), ((X, Y),), {}, ["inputs.0.0", "inputs.0.1"]),
    "same twice": (net(lambda m, x, y: m.a(x) + y), (X, X), {}, ["inputs.0", "inputs.1"]),
    "dict": (net(lambda m, d: m.a(d["x"]) + d["y"]), ({"x": X, "y": Y, "z": None},), {}, ["inputs.0.x", "inputs.0.y"]),
    "ordered": (net(lambda m, d: m.a(d["x"])), (OrderedDict(x=X),), {}, ["input"]),
    "named tuple": (net(lambda m, p: m.a(p.low) + p.high), (Pair(X, Y),), {}, ["inputs.0.low", "inputs.0.high"]),
    "dataclass": (net(lambda m, r: m.a(r.logits)), (Result(X),), {}, ["input"]),
    "object": (net(lambda m, o: m.a(o.x)), (SimpleNamespace(x=X),), {}, ["input"]),
    "not read": (net(lambda m, x, y: m.a(x)), (X, Y), {}, ["inputs.0", "inputs.1"]),
    "keyword": (Keywords().eval(), (X,), {"mask": Y}, ["x", "mask"]),
    "keywords only": (Keywords().eval(), {"mask": Y, "x": X}, {}, ["mask", "x"]),
    "all kinds": (Keywords().eval(), (X, Y), {"mask": None, "scale": Y, "name": "n"}, ["x", "more.0", "scale"]),
}


@pytest.mark.parametrize("name", CALLS)
def test_any_arguments(name: str, tmp_path: Path) -> None:
    model, example, kwargs, names = CALLS[name]
    path = export(model, example, tmp_path / "m.onnx", example_kwargs=kwargs)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [spec.name for spec in session.get_inputs()] == names
    by_name = isinstance(example, dict)
    args = () if by_name else example if isinstance(example, tuple) else (example,)
    given = [
        t for item in (example.values() if by_name else [*args, *kwargs.values()]) for t in named(item, "x").values()
    ]
    want = model(*args, **(example if by_name else kwargs))
    agrees(path, given, {"output": want})


def test_names_asked_for(tmp_path: Path) -> None:
    model = net(lambda m, x, y: {"out": m.a(x) + y, "aux": None})
    path = export(model, (X, Y), tmp_path / "m.onnx", input_names=["image", "mask"], output_names=["logits"])
    agrees(path, [X, Y], {"logits": model(X, Y)["out"]})
    with pytest.raises(ConfigError, match=r"input_names are \['image'\]; the model has 2: inputs.0, inputs.1"):
        export(model, (X, Y), tmp_path / "n.onnx", input_names=["image"])
    with pytest.raises(ConfigError, match=r"output_names are \['a', 'b'\]; the model has 1: out"):
        export(model, (X, Y), tmp_path / "n.onnx", output_names=["a", "b"])
    for names, text in ((["x", "x"], "'x'"), (["x", "a.weight"], "'a.weight'")):
        with pytest.raises(ConfigError, match=text):
            export(model, (X, Y), tmp_path / "n.onnx", input_names=names)
    assert not (tmp_path / "n.onnx").exists()


def test_an_input_called_like_a_parameter(tmp_path: Path) -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 3, 1, 1))

        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            return nn.functional.conv2d(x, self.weight) * weight

    path = export(Bare(), (X, Y), tmp_path / "m.onnx")
    agrees(path, [X, Y], {"output": Bare.forward(trained := _loaded(Bare(), path), X, Y)})
    assert [op.name for op in trace(trained, (X, Y)).ops] == ["weight"]
    assert "weight" in [node.name for node in onnx.load(str(path)).graph.node]


def _loaded(model: nn.Module, path: Path) -> nn.Module:
    tensors = {
        t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in onnx.load(str(path)).graph.initializer
    }
    model.load_state_dict({name: tensors[name] for name in model.state_dict()})
    return model


def test_batches(tmp_path: Path) -> None:
    model = net(lambda m, d: {"y": m.a(d["x"]) * d["k"]})
    path = export(model, ({"x": X, "k": torch.tensor(2.0)},), tmp_path / "m.onnx", batch=3)
    more = torch.randn(3, 3, 6, 6)
    agrees(path, [more, torch.tensor(0.5)], {"y": model.a(more) * 0.5})


REFUSED: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "a branch on values": (lambda m, x: m.a(x) if x.sum() > 0 else x, "forward branches on values"),
    "complex": (lambda m, x: {"spectrum": torch.fft.fft(m.a(x))}, "output 'spectrum' is complex"),
    "sparse": (lambda m, x: m.a(x).to_sparse(), "output 'output' is sparse"),
    "nothing": (lambda m, x: None, "returns NoneType"),
    "a set": (lambda m, x: {m.a(x)}, "returns set"),
    "numpy": (lambda m, x: m.a(torch.from_numpy(x.numpy() + 1)), r"numpy\(\) is not supported"),
    "its own error": (
        lambda m, x: m.a(x.flatten()),
        r"fails on inputs of shape \[\[1, 3, 6, 6\]\]: RuntimeError: Expected 3D",
    ),
    "an operator that ONNX lacks": (lambda m, x: torch.linalg.svdvals(m.a(x)), "No ONNX function found for.*svd"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_exported_is_one_sentence(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    forward, text = REFUSED[name]
    with pytest.raises(DeployError, match=text) as found:
        export(net(forward), X, tmp_path / "m.onnx")
    assert len(str(found.value)) < 500
    assert "\n" not in str(found.value)
    assert "\x1b" not in str(found.value)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_compiled_modules_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(torch.jit.script(conv(3, 4)))
    with pytest.raises(TraceError, match=r"torch.jit has compiled .* export the module that it was made from"):
        export(model, X, tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("want", "got", "difference_"),
    [
        (np.array([1.0, 2.0]), np.array([1.0, 2.2]), 0.1),
        (np.array([True, False, True, True]), np.array([True, True, True, True]), 0.25),
        (np.array([1, 2, 3, 4]), np.array([1, 2, 3, 400]), 0.25),
        (np.array([np.nan, np.inf, 1.0]), np.array([np.nan, np.inf, 1.0]), 0.0),
        (np.array([np.nan, 1.0]), np.array([2.0, 1.0]), np.inf),
        (np.array([1.0]), np.array([[1.0]]), np.inf),
        (np.zeros((0, 2)), np.zeros((0, 2)), 0.0),
    ],
)
def test_differences(want: np.ndarray, got: np.ndarray, difference_: float) -> None:
    assert difference(want, got) == pytest.approx(difference_)


def test_truth_values_that_differ_are_found(tmp_path: Path) -> None:
    with pytest.raises(
        Mismatch, match=r"output 'output' of the exported file differs from PyTorch by .* of its entries"
    ):
        export(net(lambda m, x: m.a(x) + torch.rand_like(x) > 0.5), X, tmp_path / "m.onnx")


def test_samples_of_a_task_fit_files_with_other_names() -> None:
    """By name, else in order: a task calls its input ``image``, an exported file ``input``, a foreign one as it likes."""
    one, two = {"image": np.zeros(1)}, {"x": np.zeros(1), "y": np.ones(1)}
    assert [list(feeds) for feeds in under(["input"], [one, one])] == [["input"], ["input"]]
    assert [list(feeds.items()) for feeds in under(["y", "x"], [two])] == [list(two.items())]
    assert [(k, v[0]) for feeds in under(["a", "b"], [two]) for k, v in feeds.items()] == [("a", 0.0), ("b", 1.0)]
    with pytest.raises(ConfigError, match=r"gives inputs \['image'\], the file takes \['a', 'b'\]"):
        next(under(["a", "b"], [one]))
