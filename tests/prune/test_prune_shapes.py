"""Shapes that pydeploy finds itself are those that PyTorch finds, and what PyTorch refuses is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pydeploy.prune.structure.shapes import _QUICK, aten, run_meta


def made(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def norm(channels: int, x: Tensor) -> tuple[Any, ...]:
    return (x, made(channels), None, made(channels), made(channels), False, 0.1, 1e-5)


CALLS: dict[str, tuple[Any, Callable[[], tuple[Any, ...]]]] = {
    "gelu": (aten.gelu.default, lambda: (made(2, 3, 4).permute(0, 2, 1),)),
    "hardtanh": (aten.hardtanh.default, lambda: (made(2, 3, dtype=torch.bfloat16), 0, 6)),
    "relu": (aten.relu.default, lambda: (made(2, 3, 4, 5).to(memory_format=torch.channels_last),)),
    "silu": (aten.silu.default, lambda: (made(7),)),
    "sigmoid of integers": (aten.sigmoid.default, lambda: (made(7, dtype=torch.int64),)),
    "add": (aten.add.Tensor, lambda: (made(2, 3, 4), made(2, 3, 4))),
    "add, broadcast": (aten.add.Tensor, lambda: (made(2, 3, 1), made(2, 3, 4))),
    "mul, broadcast": (aten.mul.Tensor, lambda: (made(2, 3, 4, 4), made(3, 1, 1))),
    "mul, both broadcast": (aten.mul.Tensor, lambda: (made(2, 1), made(1, 5))),
    "mul of types": (aten.mul.Tensor, lambda: (made(2, dtype=torch.bfloat16), made(2))),
    "hardtanh_": (aten.hardtanh_.default, lambda: (made(2, 3), 0, 6)),
    "batch norm": (aten.native_batch_norm.default, lambda: norm(3, made(2, 3, 4, 4))),
    "batch norm of vectors": (aten.native_batch_norm.default, lambda: norm(3, made(2, 3))),
    "training": (aten.native_batch_norm.default, lambda: (*norm(3, made(2, 3, 4, 4))[:5], True, 0.1, 1e-5)),
    "layer norm": (aten.native_layer_norm.default, lambda: (made(2, 5, 3), [3], made(3), made(3), 1e-5)),
    "layer norm of two axes": (aten.native_layer_norm.default, lambda: (made(2, 5, 3), [5, 3], None, None, 1e-5)),
    "addmm": (aten.addmm.default, lambda: (made(4), made(2, 3), made(3, 4))),
    **{
        f"{f}": (getattr(aten, f).default, lambda: (made(2, 3, 4),))
        for f in ["hardswish", "hardsigmoid", "leaky_relu", "elu", "tanh", "rsqrt", "sqrt", "exp", "sigmoid", "relu"]
    },
    **{
        f"{f}": (getattr(aten, f).default, lambda: (made(2, 3, 4),))
        for f in ["hardswish_", "hardsigmoid_", "leaky_relu_", "elu_", "sigmoid_", "relu_", "silu_"]
    },
    "convolution": (
        aten.convolution.default,
        lambda: (made(2, 6, 9, 8), made(4, 3, 3, 2), made(4), [2, 1], [1, 0], [1, 2], False, [0, 0], 2),
    ),
    "convolution in 1-D": (
        aten.convolution.default,
        lambda: (made(2, 6, 9), made(4, 6, 3), None, [1], [0], [1], False, [0], 1),
    ),
    "transposed convolution": (
        aten.convolution.default,
        lambda: (made(2, 6, 9, 8), made(6, 4, 2, 2), None, [2, 2], [0, 0], [1, 1], True, [1, 1], 1),
    ),
    "hardswish, channels last": (
        aten.hardswish.default,
        lambda: (made(2, 3, 4, 5).to(memory_format=torch.channels_last),),
    ),
    "add a number": (aten.add.Tensor, lambda: (made(2, 3), 2.5)),
    "add a number to integers": (aten.add.Tensor, lambda: (made(2, dtype=torch.int64), 2.5)),
    "sub": (aten.sub.Tensor, lambda: (made(4), made(2, 3, 4))),
    "div": (aten.div.Tensor, lambda: (made(2, 3, 4), made(3, 1))),
    "div of integers": (aten.div.Tensor, lambda: (made(2, dtype=torch.int64), 2)),
    "add_": (aten.add_.Tensor, lambda: (made(2, 3, 4), made(4))),
    "sub_": (aten.sub_.Tensor, lambda: (made(2, 3, 4), 1)),
    "mul_": (aten.mul_.Tensor, lambda: (made(2, 3, 4), made(2, 1, 1))),
    "div_": (aten.div_.Tensor, lambda: (made(2, 3, 4), 2.0)),
    "mean": (aten.mean.dim, lambda: (made(2, 3, 4, 5), [-1, 2], True)),
    "mean, dropped": (aten.mean.dim, lambda: (made(2, 3, 4, 5), [1])),
    "mean of all": (aten.mean.dim, lambda: (made(2, 3), [])),
    "sum": (aten.sum.dim_IntList, lambda: (made(2, 3, 4), [0, 2])),
    "sum of integers": (aten.sum.dim_IntList, lambda: (made(2, 3, dtype=torch.int32), [0])),
    "cat": (aten.cat.default, lambda: ([made(2, 3, 4), made(2, 1, 4)], -2)),
    "cat with nothing": (aten.cat.default, lambda: ([made(0), made(2, 1, 4)], 1)),
    "cat of types": (aten.cat.default, lambda: ([made(2), made(2, dtype=torch.float64)],)),
    "bilinear": (aten.upsample_bilinear2d.default, lambda: (made(1, 3, 4, 4), [8, 9], False)),
    "bicubic": (aten.upsample_bicubic2d.default, lambda: (made(1, 3, 4, 4), [8, 9], True)),
    "roll": (aten.roll.default, lambda: (made(2, 3, 4), [1, -1], [0, 2])),
    "pow": (aten.pow.Tensor_Scalar, lambda: (made(2, 3), 2)),
    "masked_fill": (aten.masked_fill.Scalar, lambda: (made(2, 3), made(3, dtype=torch.bool), -1.0)),
    "masked_fill of integers": (
        aten.masked_fill.Scalar,
        lambda: (made(3, dtype=torch.int64), made(3, dtype=torch.bool), 1),
    ),
    "group norm": (aten.native_group_norm.default, lambda: (made(2, 6, 4, 4), made(6), made(6), 2, 6, 16, 3, 1e-5)),
    "group norm, channels last": (
        aten.native_group_norm.default,
        lambda: (made(2, 6, 4, 4).to(memory_format=torch.channels_last), None, None, 2, 6, 16, 3, 1e-5),
    ),
    "addmm, broadcast": (aten.addmm.default, lambda: (made(1), made(2, 3), made(3, 4))),
}


@pytest.mark.parametrize("name", CALLS)
def test_shapes_and_types_are_pytorchs(name: str) -> None:
    func, arguments = CALLS[name]
    args = arguments()
    expected, found = func(*args), run_meta(func, args, {})
    pairs = list(zip(*(r if isinstance(r, tuple) else (r,) for r in (found, expected)), strict=True))
    for one, two in (
        pairs[:1] if func is aten.native_batch_norm.default else pairs
    ):  # in eval mode its statistics are void
        assert (one.shape, one.dtype, one.device) == (two.shape, two.dtype, two.device)
    if name.endswith("_"):
        assert found is args[0]


@pytest.mark.parametrize(
    ("func", "args"),
    [
        (aten.native_batch_norm.default, norm(3, made(2, 4, 4, 4))),
        (aten.native_layer_norm.default, (made(2, 5, 3), [4], made(4), made(4), 1e-5)),
        (aten.native_layer_norm.default, (made(3), [2, 3], None, None, 1e-5)),
        (aten.addmm.default, (made(4), made(2, 3), made(5, 4))),
        (aten.addmm.default, (made(3), made(2, 3), made(3, 4))),
        (aten.add.Tensor, (made(2, 3), made(2, 4))),
        (aten.add_.Tensor, (made(3), made(2, 3))),
        (aten.mean.dim, (made(2, 3), [2])),
        (
            aten.convolution.default,
            (made(1, 3, 8, 8), made(4, 4, 3, 3), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
        ),
        (
            aten.convolution.default,
            (made(1, 3, 2, 2), made(4, 3, 3, 3), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
        ),
        (aten.mean.dim, (made(2, 3), [0, -2])),
        (aten.cat.default, ([made(2, 3), made(3, 2)],)),
        (aten.masked_fill.Scalar, (made(2, 3), made(2, dtype=torch.bool), 1.0)),
        (aten.native_group_norm.default, (made(2, 6, 4, 4), made(5), None, 2, 6, 16, 3, 1e-5)),
        (aten.native_group_norm.default, (made(2, 6, 4, 4), None, None, 2, 6, 16, 4, 1e-5)),
    ],
)
def test_what_does_not_fit_is_refused(func: Any, args: tuple[Any, ...]) -> None:
    with pytest.raises((RuntimeError, IndexError)):
        run_meta(func, args, {})


def test_every_quick_answer_is_tested() -> None:
    tested = {func for func, _ in CALLS.values()}
    assert {f for f in _QUICK if not f.name().rpartition("::")[2].endswith("_")} <= tested
