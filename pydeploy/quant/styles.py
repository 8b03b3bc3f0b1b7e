"""What each runtime turns into integer layers, and how the instruction sets of the target's processor change it.

`STYLES` was found by reading the graphs that the runtimes execute:

* `onnxruntime` runs ``DQ → Conv → Relu → Q`` as one integer node; a convolution without a Q behind it runs in float,
  and so does one whose activation is not removed by the clipping of Q (uint8 with zero point 0 removes Relu, int8 with
  zero point 0 does not). So: uint8, a pair after every fused activation, on both inputs and the output of Add, Mul and
  pooling; int32 biases; spatial means as GlobalAveragePool, which has an integer kernel where ReduceMean has none.
* `openvino` needs the inputs of weighted layers, and both inputs of a residual addition: then convolution, addition,
  activation and rounding are one layer. Without, the convolution writes float32 and rounding is a layer of its own.
* `tensorrt` takes int8 with zero point 0 only, float biases, float weights behind Q and DQ, pairs on the inputs of
  weighted layers and on the skip input of a residual addition; the other input belongs to the convolution that the
  addition is fused into (TensorRT developer guide, "Q/DQ placement recommendations").

What the processor decides (`style_on`):

* Without AMX, OpenVINO turns signed int8 activations into uint8 itself, so uint8 with a zero point costs nothing and is up
  to twice as fine. It also computes int8 maps wrongly behind a Concat (OpenVINO 2026.4: they are rounded to whole numbers,
  their scale is forgotten), so those are uint8 on every processor.
* With AMX, int8 needs no correction for a zero point: tensors with both signs are int8, the others uint8.
* On x86 without VNNI and AMX, ONNX Runtime and OpenVINO add pairs of uint8 x int8 products in saturating int16
  (``vpmaddubsw``). Weights keep to 7 bits there: 2 x 255 x 63 is below 2^15.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from pydeploy.backends import device
from pydeploy.backends.base import backend_class, names
from pydeploy.errors import BackendUnavailable, ConfigError, nearest
from pydeploy.onnxfile.nodes import WEIGHTED
from pydeploy.timing.records import Target

ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Sigmoid", "HardSigmoid", "HardSwish", "Gelu",
                          "Tanh"})  # fmt: skip
SEVEN_BITS = 63
"""Largest weight where sums of two products saturate."""


@dataclass(frozen=True, slots=True)
class Style:
    """What one runtime turns into integer layers."""

    scheme: Literal["symmetric", "asymmetric", "by sign"]
    """Activations: int8 with zero point 0; uint8 with any zero point; or uint8 with zero point 0 where nothing is negative,
    int8 elsewhere, but uint8 with any zero point on both sides of a Concat."""
    placement: Literal["inputs", "outputs-too"]
    """Whether a layer's output needs a pair for the layer to be an integer one."""
    weights: Literal["float", "int8"]
    """What is stored: a float32 initializer behind Q and DQ, or an int8 initializer behind DQ."""
    bias: Literal["float", "int32"]
    weighted: frozenset[str]
    """Layers with weights that have an integer form."""
    fused: frozenset[str]
    """Activations that become part of the layer before them."""
    kernels: frozenset[str] = frozenset()
    """Layers without weights that have an integer form; used with 'outputs-too'."""
    add_inputs: Literal["none", "skip", "both"] = "none"
    """Which inputs of a residual addition get a pair although no weighted layer reads them."""
    moved_inputs: bool = False
    """Whether pooling, reshaping and Concat before a pair get it on their inputs as well, to run on integers."""
    shared_concat: bool = True
    """Whether all inputs of Concat get one scale."""
    min_channels: int = 1
    """Layers with fewer channels than this on both sides stay in float."""
    tensor_cores: bool = False
    """Whether layers whose shape integer tensor cores cannot use stay in float (`_awkward`)."""
    onednn: bool = False
    """Whether the runtime keeps to the instruction sets that oneDNN is allowed by its environment variable."""
    lax: bool = False
    """Whether the parser also takes what TensorRT up to 10 refuses (`pydeploy.quant.lint`)."""
    weight_top: int = 127
    """Largest integer that a weight becomes."""


_NVIDIA = Style(
    scheme="symmetric",
    placement="inputs",
    weights="float",
    bias="float",
    weighted=WEIGHTED,
    fused=ACTIVATIONS,
    add_inputs="skip",
    min_channels=16,
    tensor_cores=True,
)

STYLES: Mapping[str, Style] = {
    "onnxruntime": Style(
        scheme="asymmetric",
        placement="outputs-too",
        weights="int8",
        bias="int32",
        weighted=frozenset({"Conv", "Gemm", "MatMul"}),
        fused=frozenset({"Relu", "Clip"}),
        kernels=frozenset({"Add", "Mul", "Concat", "GlobalAveragePool", "AveragePool", "Sigmoid", "LeakyRelu"}),
        # A shared scale would give a ReLU beside a signed tensor a zero point above 0: its convolution would be float.
        shared_concat=False,
    ),
    "openvino": Style(
        scheme="by sign",
        placement="inputs",
        weights="int8",
        bias="float",
        weighted=WEIGHTED,
        fused=ACTIVATIONS,
        add_inputs="both",
        moved_inputs=True,
        onednn=True,
    ),
    "tensorrt": _NVIDIA,
    "tensorrt-rtx": replace(_NVIDIA, lax=True),
}


def style_for(name: str) -> str:
    """The style of that name, or the one that the backend of that name declares.

    Raises `ConfigError` where there is neither.
    """
    if name in STYLES:
        return name
    try:
        return backend_class(name).int8_style
    except BackendUnavailable:
        raise ConfigError(f"unknown quantization style '{name}'{nearest(name, (*STYLES, *names()))}") from None


def style_named(name: str) -> Style:
    """The entry of `STYLES`; raises `ConfigError` for an unknown name."""
    if name not in STYLES:
        raise ConfigError(f"unknown quantization style '{name}'{nearest(name, STYLES)}")
    return STYLES[name]


def style_on(name: str, target: Target | None = None) -> Style:
    """The style of that name as the processor of `target` wants it.

    None: of this computer, for styles of runtimes that run on it. Raises `ConfigError` for an unknown name.
    """
    style = style_named(name)
    if target is None and style.scheme == "symmetric":  # a GPU's
        return style
    target = target or _here(name, style)
    scheme = "asymmetric" if style.scheme == "by sign" and not target.has_amx else style.scheme
    return replace(style, scheme=scheme, weight_top=SEVEN_BITS if target.saturates else style.weight_top)


def processor(backend: str, instruction_sets: str) -> Target:
    """A target of which only the instruction sets are known, such as ``avx2 fma`` (names of ``/proc/cpuinfo``).

    Raises `ConfigError` for a name that decides nothing.
    """
    names = instruction_sets.split()
    for name in names:
        if name not in device.NOTABLE:
            raise ConfigError(f"unknown instruction set '{name}'{nearest(name, device.NOTABLE)}")
    machine = "aarch64" if {"asimd", "sve"} & set(names) else "x86_64"
    return Target("", backend, "", "int8", 1, 1, {"machine": machine, "instruction_sets": " ".join(names)})


def _here(name: str, style: Style) -> Target:
    """The computer at hand as the runtime of that style sees it."""
    cpu = device.cpu(cap=device.onednn_cap() if style.onednn else "")
    return Target(cpu.name, name, "", "int8", 1, cpu.cores, cpu.facts)
