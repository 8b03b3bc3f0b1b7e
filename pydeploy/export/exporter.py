"""torch's ONNX exporter, with equal parameters kept apart and failures told in a sentence."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from pydeploy.errors import TraceError

OPSET = 20
"""Newest operator set that ONNX Runtime 1.20, OpenVINO 2025 and TensorRT 10 all read."""

ParameterOf = Mapping[str, str]
"""``{tensor: the largest parameter that it is computed from}``, of tensors computed from parameters and constants alone."""


def exported(model: nn.Module, tensors: Sequence[Tensor]) -> tuple[onnx.ModelProto, ParameterOf]:
    """The ONNX form of ``model(*tensors) -> tuple of tensors``. Raises `TraceError` with the cause in one sentence."""
    try:
        with _quiet():
            program = torch.onnx.export(
                model, tuple(tensors), dynamo=True, opset_version=OPSET, verbose=False, optimize=False
            )
            assert program is not None
            parameter_of = _parameter_of(program.model)
            proto = _simplified(program.model, parameter_of)
    except Exception as error:  # the exporter lets errors of any kind through
        raise TraceError(f"torch cannot export the model: {reason(error)}") from error
    # The exporter notes source paths of this machine in every node; they make files differ from place to place.
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    return proto, parameter_of


def _parameter_of(model: Any) -> ParameterOf:
    sizes = {
        name: value.const_value.size
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }
    found: dict[str, str] = {name: name for name in sizes}
    constant: dict[str, str] = dict(found)
    for node in model.graph:
        names = [value.name for value in node.inputs if value is not None]
        if any(name not in constant for name in names) or node.op_type.startswith("Random"):
            continue
        largest = max((constant[name] for name in names if constant[name]), key=sizes.__getitem__, default="")
        constant |= dict.fromkeys((value.name for value in node.outputs), largest)
    return {name: parameter for name, parameter in constant.items() if parameter}


def _simplified(model: Any, parameter_of: ParameterOf) -> onnx.ModelProto:
    """Weights that are computed from parameters are folded, and batch norms go into convolutions, as torch's own exporter does it.
    But tensors that happen to be equal are not merged: an untrained network's norms would be one, and a cut could not tell
    them apart.
    """
    from onnx_ir import serde
    from onnx_ir.passes import common
    from onnxscript import optimizer, rewriter

    def of_parameters(node: Any) -> bool | None:
        inputs = [value for value in node.inputs if value is not None]
        return True if inputs and all(value.name in parameter_of for value in inputs) else None

    common.InlinePass()(model)
    for _ in range(2):
        optimizer.fold_constants(model, should_fold=of_parameters)
        rewriter.rewrite(model)
        common.RemoveUnusedNodesPass()(model)
    for tidy in (common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
                 common.LiftSubgraphInitializersToMainGraphPass(), common.RemoveUnusedNodesPass(),
                 common.RemoveUnusedOpsetsPass(), common.OutputFixPass(), common.NameFixPass()):  # fmt: skip
        tidy(model)
    proto: onnx.ModelProto = serde.serialize_model(model)
    return proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about its own internals and prints progress; neither is of use to our users."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def reason(error: BaseException) -> str:
    """The innermost cause of an exporter's error, as one line of plain text."""
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    cause = chain[-1]
    text = " ".join(_COLOURS.sub("", str(cause)).split()) or type(cause).__name__
    if "data-dependent" in text or "DataDependent" in type(cause).__name__ or "GuardOnData" in type(cause).__name__:
        return f"its forward branches on values or makes sizes of them ({_short(text)})"
    return f"{type(cause).__name__}: {_short(text)}"


def _short(text: str) -> str:
    first = re.split(r"(?<=[.!?]) ", text, maxsplit=1)[0]
    return first if len(first) <= 240 else first[:237] + "..."
