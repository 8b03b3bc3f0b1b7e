"""What TensorRT's engine inspector tells of each layer, in every version's spelling, as one record.

The same JSON comes from the running engine (`EngineInspector`) and from ``trtexec --exportLayerInfo``:

* 8.6 and 10: ``"Bindings"``, and ``"Format/Datatype"`` per tensor with texts such as
  ``Channel major FP16 format where channel % 8 == 0`` (Myelin layers just ``Half``).
* 11: ``"I/O Tensors"``, ``"Format"`` and ``"Datatype"`` apart, ``... format (kHWC8) where C is padded to a multiple of 8``.
* Built with less than detailed verbosity, a layer is a bare name.

The nodes of the ONNX file that a layer came from are in ``Metadata``: ``[ONNX Layer: name]``, joined by the control
characters 1E and 1F.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydeploy.errors import DataError
from pydeploy.timing.records import Padding

_ONNX_NAME = re.compile(r"\[ONNX Layer: ([^\]\x1e\x1f]*)\]")
_LAYOUT = re.compile(r"\(k(\w+)\)")
_MODULO = re.compile(r"channel % (\d+) == 0")
_WORDS = {"two": 2, "four": 4, "eight": 8, "sixteen": 16, "thirty-two": 32}
_WIDE = re.compile(r"\b(Two|Four|Eight|Sixteen|Thirty-two)\b[- ](?:wide[- ])?channel", re.IGNORECASE)
_LINEAR = re.compile(r"linear|non-vectorized", re.IGNORECASE)
_DTYPES = ((r"\bBF16\b|\bBFloat16\b", "bfloat16"), (r"\bHalf\b|\bFP16\b|\bFloat16\b", "float16"), (r"\bFP8\b", "float8"),
           (r"\bInt8\b", "int8"), (r"\bInt32\b", "int32"), (r"\bInt64\b", "int64"), (r"\bBool\b", "bool"),
           (r"\bFloat\b|\bFP32\b|\bFloat32\b|\bTF32\b", "float32"))  # fmt: skip
_REFORMAT = re.compile(r"^(Reformatting CopyNode|Reformat\b|\(Unnamed Layer)")
_PROFILE_SUFFIX = re.compile(r"\s*\[profile \d+\]$")


@dataclass(frozen=True, slots=True)
class Layout:
    """A tensor as a layer reads or writes it.

    `multiple`: channels are padded to a multiple of this; 1 = they are not, 0 = TensorRT says nothing of the layout.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    multiple: int
    text: str
    """TensorRT's own words."""


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """One layer of an engine. `nodes` are ONNX node names; empty for what TensorRT inserted."""

    name: str
    kind: str
    nodes: tuple[str, ...]
    inputs: tuple[Layout, ...] = ()
    outputs: tuple[Layout, ...] = ()
    tactic: str = ""

    @property
    def padding(self) -> Padding:
        """Channel multiples of the first tensors that it reads and writes."""
        first = [layouts[0].multiple if layouts else 0 for layouts in (self.inputs, self.outputs)]
        return first[0], first[1]


def parse_layers(text: str) -> list[LayerInfo]:
    """Layers in execution order. `DataError` when `text` is not the inspector's JSON."""
    try:
        data = json.loads(text, strict=False)  # names may hold raw control characters
        layers = data["Layers"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"not the engine inspector's JSON ({error!r}); expected an object with 'Layers'") from None
    if not isinstance(layers, list):
        raise DataError("not the engine inspector's JSON: 'Layers' must be a list")
    return [_layer(item) for item in layers]


def _layer(item: Any) -> LayerInfo:
    if isinstance(item, str):  # built with LAYER_NAMES_ONLY
        return LayerInfo(item, "", nodes_of(item, ""))
    if not isinstance(item, Mapping) or "Name" not in item:
        raise DataError("not the engine inspector's JSON: a layer is a name or an object with 'Name'")
    name = str(item["Name"])
    tactic = str(item.get("TacticName") or item.get("Tactic") or "")
    return LayerInfo(name, str(item.get("LayerType", "")), nodes_of(name, str(item.get("Metadata") or "")),
                     _layouts(item.get("Inputs")), _layouts(item.get("Outputs")), tactic)  # fmt: skip


def _layouts(items: Any) -> tuple[Layout, ...]:
    found: Sequence[Any] = items if isinstance(items, list) else []
    return tuple(layout(item) for item in found if isinstance(item, Mapping))


def layout(item: Mapping[str, Any]) -> Layout:
    """One tensor of a layer, from either spelling."""
    text = str(
        item.get("Format/Datatype") or " ".join(str(item.get(key, "")) for key in ("Format", "Datatype"))
    ).strip()
    try:
        shape = tuple(int(size) for size in item.get("Dimensions") or ())
    except (TypeError, ValueError, OverflowError):
        raise DataError(
            f"not the engine inspector's JSON: 'Dimensions' must be numbers, got {item['Dimensions']!r}"
        ) from None
    return Layout(str(item.get("Name", "")), shape, _dtype(text), _multiple(text), text)


def _dtype(text: str) -> str:
    return next((name for pattern, name in _DTYPES if re.search(pattern, text, re.IGNORECASE)), "")


def _multiple(text: str) -> int:
    """8 from ``(kHWC8)``, ``channel % 8 == 0`` and ``Eight channel``; 1 from a linear format; else 0."""
    if match := _LAYOUT.search(text):
        digits = re.search(r"(\d+)$", match[1])
        return int(digits[1]) if digits else 1
    if match := _MODULO.search(text):
        return int(match[1])
    if match := _WIDE.search(text):
        return _WORDS[match[1].lower()]
    return 1 if _LINEAR.search(text) else 0


def nodes_of(name: str, metadata: str) -> tuple[str, ...]:
    """ONNX nodes of a layer: from its metadata, else from its name, where fused nodes are joined by `` + ``."""
    found = _ONNX_NAME.findall(metadata)
    if not found and not metadata and not _REFORMAT.match(name) and not name.startswith("__my"):
        found = [part.strip() for part in _PROFILE_SUFFIX.sub("", name).split(" + ")]
    return tuple(dict.fromkeys(part for part in found if part))
