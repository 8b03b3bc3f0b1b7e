"""The hash of a function sees what changes its result, and nothing else."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pydeploy.guests.functions import digest

HELPERS = """
LIMIT = {limit}
def inner(x):
    return x {operator} 2
class Model:
    scale = {scale}
    def __call__(self, x):
        return self.scale * x
"""
MAIN = """
import math
import helpers
from helpers import Model, inner
table = {table}
def given(x, y={default}):
    {comment}
    def nested(z):
        return z + {constant}
    return nested(inner(x)) + math.sqrt(y) + len(table) + Model()(x) + helpers.LIMIT
"""
PLAIN = {"limit": 3, "operator": "+", "scale": 1, "table": "[1, 2]", "default": 1, "comment": "pass", "constant": 5}


def program(place: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> Callable[..., Any]:
    """`given` of a program of two files, imported anew."""
    import importlib
    import sys

    place.mkdir()
    for name, text in (("helpers", HELPERS), ("mainly", MAIN)):
        (place / f"{name}.py").write_text(textwrap.dedent(text.format(**{**PLAIN, **changes})))
        sys.modules.pop(name, None)
    monkeypatch.syspath_prepend(place)
    importlib.invalidate_caches()
    found: Callable[..., Any] = importlib.import_module("mainly").given
    return found


CHANGES: list[tuple[str, object]] = [("limit", 4), ("operator", "-"), ("scale", 2), ("table", "[1, 3]"), ("default", 2),
                                     ("constant", 6)]  # fmt: skip


@pytest.mark.parametrize(("what", "value"), CHANGES, ids=[what for what, _ in CHANGES])
def test_a_change_anywhere_in_the_program_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, value: object
) -> None:
    before = digest(program(tmp_path / "a", monkeypatch))
    assert digest(program(tmp_path / "b", monkeypatch)) == before
    assert digest(program(tmp_path / "c", monkeypatch, **{what: value})) != before


def test_comments_and_places_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(program(tmp_path / "a", monkeypatch))
    assert digest(program(tmp_path / "b", monkeypatch, comment="# a remark\n\n    pass")) == before


def closing(over: Any, at: int = 0) -> Callable[[], Any]:
    return lambda: (over, at)


def loader(seed: int, batch: int = 4) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(torch.randn(8, 3, generator=generator)), batch_size=batch)


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


class Judge:
    """A callable with a state."""

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def __call__(self, predict: Any) -> float:
        return float(predict(1) > self.limit)

    def other(self, predict: Any) -> float:
        return float(predict(2) > self.limit)


def one(a: int) -> int:
    return a + 1


PAIRS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "number": (lambda: closing(1), lambda: closing(2)),
    "kind of number": (lambda: closing(1), lambda: closing(1.0)),
    "text": (lambda: closing("a"), lambda: closing("b")),
    "array": (lambda: closing(np.arange(3)), lambda: closing(np.arange(3) + 1)),
    "array's type": (lambda: closing(np.arange(3)), lambda: closing(np.arange(3.0))),
    "tensor": (lambda: closing(torch.ones(2)), lambda: closing(torch.zeros(2))),
    "bfloat16": (lambda: closing(torch.ones(2).bfloat16()), lambda: closing(torch.zeros(2).bfloat16())),
    "list": (lambda: closing([1, 2]), lambda: closing([1, 2, 3])),
    "nesting": (lambda: closing([[1], 2]), lambda: closing([[1, 2]])),
    "dict": (lambda: closing({"a": 1}), lambda: closing({"a": 2})),
    "set": (lambda: closing({1, 2}), lambda: closing({1, 3})),
    "network": (lambda: closing(net(0)), lambda: closing(net(1))),
    "loader's data": (lambda: closing(loader(0)), lambda: closing(loader(1))),
    "loader's batch": (lambda: closing(loader(0)), lambda: closing(loader(0, batch=2))),
    "object": (lambda: Judge(0.5), lambda: Judge(0.6)),
    "method": (lambda: Judge(0.5).__call__, lambda: Judge(0.5).other),
    "partial": (lambda: partial(one, 1), lambda: partial(one, 2)),
    "library function": (lambda: F.cross_entropy, lambda: F.mse_loss),
    "library function inside": (lambda: closing(F.cross_entropy), lambda: closing(F.mse_loss)),
    "class": (lambda: closing(nn.ReLU), lambda: closing(nn.GELU)),
    "nothing": (lambda: None, lambda: closing(None)),
}  # fmt: skip


@pytest.mark.parametrize("kind", PAIRS)
def test_what_is_closed_over_counts_by_its_value(kind: str) -> None:
    left, right = PAIRS[kind]
    assert digest(left()) == digest(left())
    assert digest(right()) == digest(right())
    assert digest(left()) != digest(right())


def test_a_loader_that_was_read_is_the_same() -> None:
    data = loader(0)
    before = digest(closing(data))
    list(data)
    assert digest(closing(data)) == before


def test_circles_and_what_cannot_be_told_end() -> None:
    circle: list[Any] = [1]
    circle.append(circle)
    assert digest(circle) == digest(circle)
    assert digest(closing(x for x in "ab")) == digest(closing(x for x in "ab"))
    assert digest(closing(torch.Generator())) == digest(closing(torch.Generator()))
