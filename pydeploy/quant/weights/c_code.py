"""Weights for C: identifiers, constants of layers, arrays."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydeploy.onnxfile.nodes import new_name
from pydeploy.quant.weights.records import Layer, Weights

_TYPES = {"float32": "float", "float64": "double", "int8": "int8_t", "uint8": "uint8_t", "int16": "int16_t", "int32": "int32_t",
          "int64": "int64_t", "uint16": "uint16_t", "bool": "uint8_t"}  # fmt: skip
_WORDS = frozenset(
    ["auto", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum", "extern", "float", "for", "goto",
     "if", "inline", "int", "long", "register", "restrict", "return", "short", "signed", "sizeof", "static", "struct", "switch",
     "typedef", "union", "unsigned", "void", "volatile", "while"]
)  # fmt: skip
"""Of C99; no identifier may be one."""


def identifiers(names: Sequence[str]) -> dict[str, str]:
    """For each name one of C, all different: ``layer1.0.conv1`` -> ``layer1_0_conv1``."""
    taken = set(_WORDS)
    found = {}
    for name in names:
        plain = re.sub(r"[^0-9A-Za-z_]", "_", name)
        found[name] = new_name(plain if re.match(r"[A-Za-z]", plain) else f"n{plain}", taken)
    return found


def array(name: str, values: NDArray[Any]) -> str:
    """The definition of a constant array; floats are written so that they read back exactly."""
    flat = values.ravel()
    kind = _TYPES[values.dtype.name]
    texts = [float(one).hex() + "f" for one in flat] if kind == "float" else [str(int(one)) for one in flat]
    rows = [", ".join(texts[at : at + 12]) for at in range(0, len(texts), 12)]
    return f"static const {kind} {name}[{max(1, flat.size)}] = {{\n" + ",\n".join(rows or ["0"]) + "\n};\n"


def arrays_in(text: str) -> dict[str, NDArray[Any]]:
    """What `array` wrote."""
    found = {}
    for kind, name, body in re.findall(r"static const (\w+) (\w+)\[\d+\] = \{\s*(.*?)\s*\};", text, re.S):
        texts = re.split(r",\s*", body)
        found[name] = np.array(
            [float.fromhex(one.rstrip("f")) for one in texts] if kind == "float" else [int(one) for one in texts]
        )
    return found


def layer_constants(weights: Weights) -> str:
    """An enum with the numbers of every integer layer: sizes, strides, zero points, limits."""
    shapes = {tensor.name: tensor.values.shape for tensor in weights.tensors}
    names = identifiers([layer.name for layer in weights.layers])
    rows = [f"    {names[layer.name]}_{key} = {value}," for layer in weights.layers if layer.input is not None
            for key, value in _numbers(layer, shapes[layer.tensors["weight"]]).items()]  # fmt: skip
    return "enum {\n" + "\n".join(rows) + "\n};\n" if rows else ""


def offsets(weights: Weights, align: int) -> str:
    """A header with the numbers of layers, and where in ``weights.bin`` each of their tensors lies."""
    places, at = {}, 0
    for tensor in weights.tensors:
        places[tensor.name] = at
        at += -(-tensor.values.nbytes // align) * align
    names, layers = (
        identifiers([tensor.name for tensor in weights.tensors]),
        identifiers([one.name for one in weights.layers]),
    )
    rows = [
        f"    {layers[layer.name]}_{part}_at = {places[name]},"
        for layer in weights.layers
        for part, name in layer.tensors.items()
    ]
    listed = [
        f"/* {places[one.name]}: {names[one.name]}, {one.values.dtype.name}[{one.values.size}] */"
        for one in weights.tensors
    ]
    enum = "enum {\n" + "\n".join([*rows, f"    weights_bytes = {at},"]) + "\n};\n"
    return "\n".join(["#ifndef WEIGHTS_H", "#define WEIGHTS_H", *listed, enum, layer_constants(weights), "#endif", ""])


def _numbers(layer: Layer, shape: Sequence[int]) -> dict[str, int]:
    assert layer.input is not None
    found = {"input_zero": layer.input.zero_point, "input_signed": int(layer.input.dtype == "int8")}
    if layer.output is not None:
        found |= {"output_zero": layer.output.zero_point, "output_signed": int(layer.output.dtype == "int8"),
                  "low": layer.low, "high": layer.high}  # fmt: skip
    if layer.op == "Conv" and len(shape) == 4:
        pick = layer.attributes
        (up, across), (down, over) = pick.get("strides", [1, 1]), pick.get("dilations", [1, 1])
        groups = pick.get("group", 1)
        found |= {"outputs": shape[0], "inputs": shape[1] * groups, "groups": groups, "kernel_h": shape[2], "kernel_w": shape[3],
                  "stride_h": up, "stride_w": across, "dilation_h": down, "dilation_w": over}  # fmt: skip
        if not str(pick.get("auto_pad", "")).startswith("SAME"):  # there they depend on the size of the map
            found |= dict(
                zip(("pad_top", "pad_left", "pad_bottom", "pad_right"), pick.get("pads", [0] * 4), strict=True)
            )
    elif layer.op in ("Gemm", "MatMul") and len(shape) == 2:
        outputs = 0 if layer.attributes.get("transB", 0) else 1
        found |= {"outputs": shape[outputs], "inputs": shape[1 - outputs], "inputs_first": outputs}
    return found
