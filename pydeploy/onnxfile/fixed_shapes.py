"""Foreign ONNX files made ready to build: one file with its weights inside, all input shapes fixed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it ships no types

from pydeploy.errors import ConfigError, DataError, nearest

Shapes = Mapping[str, Sequence[int]]
"""Shape of each input by name; '' stands for the only input."""


def with_fixed_shapes(path: Path, shapes: Shapes, batch: int, *, dynamic_batch: bool = False) -> onnx.ModelProto | None:
    """The model in `path` with its external weights inside and its inputs at `shapes`, or None where nothing is open.

    An open first dimension that `shapes` does not give is `batch`, or stays with `dynamic_batch`. Raises `DataError` for
    files that cannot be read and other dimensions that stay open, `ConfigError` for shapes that contradict the file.
    """
    model, external = _read(path)
    inputs = _inputs(model)
    given = _by_name(shapes, inputs, path)
    symbols: dict[str, int] = {}
    fixed = [_fix(value, given.get(name), batch, symbols, path, keep=dynamic_batch) for name, value in inputs.items()]
    for value in inputs.values():
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_value = symbols[dim.dim_param]
    _require_closed(inputs, path, keep=dynamic_batch)
    if not any(fixed):
        return model if external else None
    _forget_shapes(model)
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise DataError(f"{path} does not fit these shapes: {' '.join(str(error).split())[:200]}") from None


def _read(path: Path) -> tuple[onnx.ModelProto, bool]:
    """The whole model, and whether some weights lay in other files."""
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
        external = any(t.data_location == onnx.TensorProto.EXTERNAL for t in _tensors(model.graph))
        onnx.load_external_data_for_model(model, str(path.parent))
    except FileNotFoundError as error:
        missing = Path(error.filename or path)
        kept = "" if missing == path else f"; {path} keeps its weights there"
        raise DataError(f"{missing} does not exist{kept}") from None
    except (OSError, DecodeError, onnx.checker.ValidationError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} is not a valid ONNX file ({reason}); export the model again") from None
    return model, external


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """All tensors that a graph holds, in nodes and inner graphs too."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def _inputs(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    weights = {tensor.name for tensor in model.graph.initializer}
    return {value.name: value for value in model.graph.input if value.name not in weights}


def _by_name(shapes: Shapes, inputs: Mapping[str, onnx.ValueInfoProto], path: Path) -> dict[str, Sequence[int]]:
    if "" in shapes and len(inputs) != 1:
        raise ConfigError(
            f"{path} has inputs {list(inputs)}: say which, as --shape {next(iter(inputs), 'x')}=1x3x224x224"
        )
    for name in shapes:
        if name and name not in inputs:
            raise ConfigError(f"{path} has no input '{name}', it has {list(inputs)}{nearest(name, inputs)}")
    return {name or next(iter(inputs)): shape for name, shape in shapes.items()}


def _fix(
    value: onnx.ValueInfoProto,
    shape: Sequence[int] | None,
    batch: int,
    symbols: dict[str, int],
    path: Path,
    *,
    keep: bool,
) -> bool:
    """Write `shape` (or the batch) into an input where it is open, and note symbols; whether anything was open."""
    kind = value.type.tensor_type
    if shape is not None and not kind.HasField("shape"):
        kind.shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in shape)
    dims = kind.shape.dim
    was = [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else d.dim_param or "?" for d in dims]
    if shape is None:
        shape = [batch, *[0] * (len(was) - 1)] if was and isinstance(was[0], str) and not keep else []
    elif len(shape) != len(was) or any(isinstance(w, int) and w != size for w, size in zip(was, shape, strict=True)):
        shown = "[" + ", ".join(map(str, was)) + "]"
        raise ConfigError(f"{path}: input '{value.name}' is {shown}; the shape given is {list(shape)}")
    opened = False
    for dim, old, size in zip(dims, was, shape, strict=False):
        if isinstance(old, str) and size:
            if symbols.setdefault(old, size) != size and old != "?":
                raise ConfigError(f"{path}: '{old}' cannot be {symbols[old]} and {size} at once")
            dim.dim_value = size
            opened = True
    return opened


def _require_closed(inputs: Mapping[str, onnx.ValueInfoProto], path: Path, *, keep: bool) -> None:
    for name, value in inputs.items():
        kind = value.type.tensor_type
        dims = [
            d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else d.dim_param or "?" for d in kind.shape.dim
        ]
        if not kind.HasField("shape") or any(isinstance(d, str) for d in dims[1 if keep else 0 :]):
            shown = "x".join(str(d) if isinstance(d, int) else "..." for d in dims) or "..."
            raise DataError(
                f"{path}: input '{name}' has the open shape [{', '.join(map(str, dims))}]; fix it with --shape {name}={shown}"
            )


def _forget_shapes(model: onnx.ModelProto) -> None:
    """Shapes that were noted for the open ones, of values within and of results, are inferred anew."""
    del model.graph.value_info[:]
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.Clear()
