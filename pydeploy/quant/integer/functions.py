"""Activation functions that become tables: of float values and a node's attributes, to float values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Attributes = Mapping[str, Any]


def _softplus(x: Floats, _attributes: Attributes) -> Floats:
    return np.logaddexp(0.0, x)


def _sigmoid(x: Floats, _attributes: Attributes) -> Floats:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def _hard_sigmoid(x: Floats, attributes: Attributes) -> Floats:
    found: Floats = np.clip(attributes.get("alpha", 0.2) * x + attributes.get("beta", 0.5), 0.0, 1.0)
    return found


def _gelu(x: Floats, attributes: Attributes) -> Floats:
    if attributes.get("approximate", b"none") == b"tanh":
        return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    return np.array([0.5 * one * (1.0 + math.erf(one / math.sqrt(2.0))) for one in x])


FUNCTIONS: Mapping[str, Callable[[Floats, Attributes], Floats]] = {
    "Sigmoid": _sigmoid,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda x, _: x * np.clip(x / 6.0 + 0.5, 0.0, 1.0),
    "Tanh": lambda x, _: np.tanh(x),
    "Softplus": _softplus,
    "Mish": lambda x, _: x * np.tanh(np.logaddexp(0.0, x)),
    "Gelu": _gelu,
    "LeakyRelu": lambda x, a: np.where(x < 0, a.get("alpha", 0.01) * x, x),
    "Elu": lambda x, a: np.where(x < 0, a.get("alpha", 1.0) * np.expm1(np.minimum(x, 0)), x),
}
