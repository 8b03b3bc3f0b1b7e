"""Tensors as the C++ core sees them, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pydeploy.errors import DataError

Order = tuple[int, ...]
"""Tensor dim of each array axis: an array that is not in the tensor's order keeps its memory format."""


def check_dense(name: str, tensor: Tensor) -> None:
    """Raise `DataError` unless the tensor has values in strided memory."""
    lazy = is_lazy(tensor)
    if not lazy and tensor.layout is torch.strided and not tensor.is_meta and not tensor.is_quantized:
        return
    kinds = {"an uninitialized": lazy, "a meta": not lazy and tensor.is_meta,
             "a quantized": not lazy and tensor.is_quantized,
             "a sparse": not lazy and tensor.layout != torch.strided}  # fmt: skip
    for kind, found in kinds.items():
        if found:
            raise DataError(
                f"'{name}' is {kind} tensor; expected a dense one with values: load the model's weights first"
            )


def packed(tensor: Tensor) -> tuple[NDArray[Any], Order | None]:
    """The tensor's values as a C-contiguous array, without a copy where its memory has no gaps, and their order.

    The order is None where it is the tensor's own. bfloat16 comes as its bits, because NumPy lacks it.
    """
    bits = tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor
    array: NDArray[Any] = bits.numpy(force=True)
    if array.flags.c_contiguous:
        return array, None
    strided = tuple(sorted(range(array.ndim), key=lambda dim: array.strides[dim], reverse=True))
    turned = array.transpose(strided)
    return (turned, strided) if turned.flags.c_contiguous else (np.ascontiguousarray(array), None)


def unpacked(source: Tensor, array: NDArray[Any], order: Order | None = None) -> Tensor:
    """`array` as a tensor with the dtype, device and gradient flag of `source`."""
    tensor = torch.from_numpy(array)
    if source.dtype is torch.bfloat16:
        tensor = tensor.view(torch.bfloat16)
    if order is not None:
        tensor = tensor.permute(tuple(order.index(dim) for dim in range(len(order))))
    if not source.is_cpu:
        tensor = tensor.to(source.device)
    kind = type(source)  # asking isinstance(..., nn.Parameter) runs Python code of torch's
    if kind is nn.Parameter or (kind is not Tensor and isinstance(source, nn.Parameter)):
        return nn.Parameter(tensor, requires_grad=source.requires_grad)
    return tensor


def as_floats(tensor: Tensor) -> NDArray[Any]:
    """The values in float32, or in float64 where they are: what the core computes with."""
    plain = tensor.detach().cpu()
    array: NDArray[Any] = (plain if plain.dtype == torch.float64 else plain.float()).contiguous().numpy()
    return array


def from_floats(array: NDArray[Any], source: Tensor) -> Tensor:
    """A computed `array` as a plain tensor in the dtype and on the device of `source`."""
    return torch.from_numpy(array).to(source.device, source.dtype)
