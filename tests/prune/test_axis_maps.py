"""One map of axes for each operator that moves entries: PyTorch itself, run on numbered entries, is the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pydeploy.prune.axis_maps import blocks, joined
from pydeploy.prune.structure import operators
from pydeploy.prune.structure.moves import MOVES, axis_maps
from pydeploy.prune.structure.operators import KINDS
from pydeploy.prune.structure.rules import BY_KIND, RULES
from pydeploy.prune.structure.tape import Value

aten = torch.ops.aten


@st.composite
def moves(draw: st.DrawFn) -> tuple[str, list[int], list[Any]]:
    """An operator, the shape of its source, and its further arguments."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    rank = len(shape)
    axis = draw(st.integers(-rank, rank - 1))
    size = shape[axis]
    times = draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank + 2))
    begin = draw(st.integers(0, size - 1))
    part = draw(st.integers(1, size))
    sizes = [part] * (size // part) + ([size % part] if size % part else [])
    wide = [n if n > 1 else draw(st.sampled_from([1, 3])) for n in shape]
    forms = {
        "view": [draw(_regrouped(shape))],
        "squeeze": draw(st.sampled_from([[], [axis], [[axis]]])),
        "unsqueeze": [draw(st.integers(-rank - 1, rank))],
        "permute": [draw(st.permutations(range(rank)))],
        "transpose": [axis, draw(st.integers(-rank, rank - 1))],
        "expand": [[2] * draw(st.integers(0, 2)) + wide],
        "repeat": [times],
        "repeat_interleave": [part, axis],
        "slice": [axis, draw(st.sampled_from([None, begin, begin - size])), draw(st.sampled_from([None, size, 2**62])),
                  draw(st.integers(1, 2))],
        "narrow": [axis, draw(st.sampled_from([begin, begin - size])), draw(st.integers(1, size - begin))],
        "split": [part, axis],
        "split_with_sizes": [sizes, axis],
        "chunk": [part, axis],
        "select": [axis, draw(st.integers(-size, size - 1))],
        "unbind": [axis],
        "flip": [[axis]],
        **({"t": []} if rank <= 2 else {}),
    }  # fmt: skip
    op = draw(st.sampled_from(sorted(forms)))
    return op, shape, forms[op]


@st.composite
def _regrouped(draw: st.DrawFn, shape: list[int]) -> list[int]:
    """Another shape of as many entries: factors of each axis, merged at random."""
    factors = [f for n in shape for f in ((2, 2) if n == 4 and draw(st.booleans()) else (n,))]
    merged = [1]
    for factor in factors:
        if draw(st.booleans()):
            merged.append(factor)
        else:
            merged[-1] *= factor
    return merged


@given(moves())
def test_what_lies_along_an_axis_is_carried_as_pytorch_moves_it(case: tuple[str, list[int], list[Any]]) -> None:
    op, shape, args = case
    run = getattr(aten, op)
    for axis, size in enumerate(shape):
        numbers = torch.arange(10, 10 + size)
        laid = numbers.reshape([-1 if a == axis else 1 for a in range(len(shape))]).expand(shape).contiguous()
        found = run(laid, *args)
        results = [found] if isinstance(found, Tensor) else list(found)
        outs = [Value(tuple(result.shape), result.dtype) for result in results]
        maps = axis_maps(op, [Value(tuple(shape), laid.dtype), *args], outs)
        assert maps is not None
        assert len(maps) == len(results)
        for how, result in zip(maps, results, strict=True):
            axes, grid = how.carry(axis, numbers.numpy())
            aligned = grid.reshape([grid.shape[axes.index(a)] if a in axes else 1 for a in range(result.dim())])
            np.testing.assert_array_equal(np.broadcast_to(aligned, result.shape), result.numpy())
            for at in how.repeated(shape, ()):
                assert (result == result.narrow(at, 0, 1)).all()


def test_every_operator_that_moves_entries_is_drawn() -> None:
    drawn = {"view", "squeeze", "unsqueeze", "permute", "transpose", "expand", "repeat", "repeat_interleave", "slice", "narrow",
             "split", "select", "unbind", "flip"}  # fmt: skip
    assert {KINDS[op] for op in drawn} == MOVES


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.data())
def test_blocks_are_the_smallest_runs_of_equal_products(shape: list[int], data: st.DataObject) -> None:
    after = data.draw(_regrouped(shape))
    found = blocks(tuple(shape), tuple(after))
    assert [a for inner, _ in found for a in inner] == list(range(len(shape)))
    assert [a for _, outer in found for a in outer] == list(range(len(after)))
    for inner, outer in found:
        assert np.prod([shape[a] for a in inner]) == np.prod([after[a] for a in outer])


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_joined_lies_where_a_concatenation_puts_it(sizes: list[int]) -> None:
    whole = np.concatenate([np.full(n, number) for number, n in enumerate(sizes)])
    for part, n in enumerate(sizes):
        np.testing.assert_array_equal(joined(part, sizes, np.full(n, part), -1), np.where(whole == part, part, -1))


def test_the_table_names_operators_that_exist_and_has_a_rule_for_each() -> None:
    import torchvision  # noqa: F401  (registers its operators)

    spaces = (torch.ops.aten, torch.ops.torchvision)
    unknown = [op for op in KINDS if not any(hasattr(space, op) or hasattr(space, f"{op}_") for space in spaces)]
    assert not unknown
    assert RULES.keys() == KINDS.keys()
    assert set(KINDS.values()) == set(BY_KIND)
    once = [op for _, _, ops in operators._TABLE for op in ops.split()]
    assert len(once) == len(set(once))
