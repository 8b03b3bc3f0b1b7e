"""The lint's verdict in style 'tensorrt-rtx' is that of NVIDIA's parser and builder, file by file; 'tensorrt' passes no more than it.

The files are wrong in one place each (`wrong_files`). Oracle: the parser and builder of TensorRT for RTX.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

import wrong_files
from pydeploy.onnxfile.half import NOT_HALF
from pydeploy.quant.lint import Finding, lint
from pydeploy.quant.lint_nvidia import NO_IMPORT, NOT_IN_RTX
from rtx_builder import Parsed, module

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning")]

REFUSED = {
    "zero point 3": "r0_QuantizeLinear",
    "zero point of a weight": "stem.weight_QuantizeLinear",
    "uint8, zero point 128": "r0_QuantizeLinear",
    "scale 0": "r0_QuantizeLinear",
    "negative scale": "r0_QuantizeLinear",
    "NaN scale": "r0_QuantizeLinear",
    "scale 0 of one channel": "stem.weight_QuantizeLinear",
    "NaN scale of one channel": "stem.weight_QuantizeLinear",
    "negative scale of one channel": "stem.weight_QuantizeLinear",
    "empty scales": "r0_QuantizeLinear",
    "too few scales": "fc.weight_QuantizeLinear",
    "too many scales": "stem.weight_QuantizeLinear",
    "zero points of another size": "fc.weight_QuantizeLinear",
    "scalar zero point beside many scales": "fc.weight_QuantizeLinear",
    "axis 1 of 16 channels, 3 inputs": "stem.weight_QuantizeLinear",
    "axis 9": "stem.weight_QuantizeLinear",
    "axes of Q and DQ differ": "stem.weight_DequantizeLinear",
    "int32 bias": "bias_dq",
    "Q without DQ": "block.conv2",
    "MatMulInteger": "integer",
    "QLinearMatMul": "integer",
    "DynamicQuantizeLinear": "integer",
    "ConvInteger": "integer",
    "QLinearConv": "integer",
    "typed, a float32 scale": "stem",
    "typed, a float32 bias": "fc",
    "typed, scale 0": "x_QuantizeLinear",
    "typed, NaN scale": "x_QuantizeLinear",
    "typed, zero point 3": "r0_QuantizeLinear",
}
"""Files that the parser refuses, with the node that it names."""
NO_ENGINE = {"float8": "r0_QuantizeLinear", "blocked weights": "fc.weight_QuantizeLinear", "int16": "r0_QuantizeLinear"}
"""Files that it does not refuse at a node: the builder does, or an initializer is of a type that it does not know."""
DEARER = {
    "uint8, zero point 0": "r0_QuantizeLinear", "uint8 weight": "stem.weight_QuantizeLinear",
    "no zero point: uint8": "r0_QuantizeLinear", "int4 weight": "fc.weight_QuantizeLinear", "infinite scale": "r0_QuantizeLinear",
    "activation per channel": "r0_QuantizeLinear", "computed scale": "x_QuantizeLinear", "scale of the data": "x_QuantizeLinear",
    "typed, opset 17": "x_QuantizeLinear", "typed, opset 18": "x_QuantizeLinear",
}  # fmt: skip
"""Files that it takes at a price, or that TensorRT up to 10 refuses."""

CASES: dict[str, tuple[str, wrong_files.Change]] = {
    **{name: ("int8", change) for name, change in wrong_files.CHANGES.items()},
    **{name: ("typed", change) for name, change in wrong_files.TYPED.items()},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, onnx.ModelProto]:
    makers: dict[str, Callable[[Path], onnx.ModelProto]] = {"int8": wrong_files.quantized, "typed": wrong_files.typed}
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in makers.items()}


@pytest.fixture
def wrong(
    request: pytest.FixtureRequest, bases: dict[str, onnx.ModelProto], tmp_path: Path
) -> tuple[str, onnx.ModelProto, Path]:
    base, change = CASES[request.param]
    model = copy.deepcopy(bases[base])
    change(model)
    onnx.save(model, tmp_path / "wrong.onnx")
    return request.param, model, tmp_path / "wrong.onnx"


def errors(path: Path, style: str) -> set[str]:
    return {finding.layer for finding in lint(path, style) if finding.severity == "error"}


@pytest.mark.parametrize("wrong", CASES, indirect=True)
def test_the_lint_and_the_parser_agree(wrong: tuple[str, onnx.ModelProto, Path]) -> None:
    name, model, path = wrong
    parsed = Parsed(model)
    reason = "" if parsed.errors else parsed.build()
    refused = {place for place, _ in parsed.errors}
    found = errors(path, "tensorrt-rtx")
    if name in REFUSED:
        assert refused == {REFUSED[name]}
        assert REFUSED[name] in found
    elif name in NO_ENGINE:
        assert refused | {reason}
        assert NO_ENGINE[name] in found
    else:
        assert not parsed.errors, parsed.errors
        assert not reason
        assert not found


@pytest.mark.parametrize("wrong", CASES, indirect=True)
def test_what_the_lint_says_of_it(wrong: tuple[str, onnx.ModelProto, Path]) -> None:
    """Also where NVIDIA's parser is not installed: which rule names which node, as the table says that the parser does."""
    name, _, path = wrong
    strict = errors(path, "tensorrt")
    if place := {**REFUSED, **NO_ENGINE, **DEARER}.get(name):
        assert place in strict
    else:
        assert not strict
    if name in DEARER:
        said = [one for one in lint(path, "tensorrt-rtx") if one.layer == DEARER[name]]
        assert any("TensorRT for RTX takes it, but " in one.text for one in said if one.severity == "warning"), said
    assert (errors(path, "tensorrt-rtx") == set()) == (name not in {**REFUSED, **NO_ENGINE})


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 60
    assert not (REFUSED.keys() | NO_ENGINE.keys() | DEARER.keys()) - CASES.keys()


@pytest.mark.parametrize("style", ["onnxruntime", "openvino"])
def test_files_of_other_runtimes(style: str, tmp_path: Path) -> None:
    """What is made for them is refused, by both and at the same nodes, or taken by both."""
    model = wrong_files.quantized(tmp_path, style)
    refused = {place for place, _ in Parsed(model).errors}
    assert refused <= errors(tmp_path / "int8.onnx", "tensorrt-rtx")
    assert bool(refused) == bool(errors(tmp_path / "int8.onnx", "tensorrt-rtx"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("op", wrong_files.OPERATORS)
def test_operators_in_half_precision(op: str, dtype: str, tmp_path: Path) -> None:
    module()
    kind = TensorProto.FLOAT16 if dtype == "float16" else TensorProto.BFLOAT16
    model = wrong_files.one_operator(op, kind, *wrong_files.OPERATORS[op])
    onnx.save(model, tmp_path / "net.onnx")
    parsed = Parsed(model)
    refused = bool(parsed.errors) or bool(parsed.build())
    assert refused == (op in NOT_HALF[dtype])
    expected = (
        [Finding("error", "op", f"TensorRT has no {dtype} {op}; keep it in float32 (pydeploy half does)")]
        if refused
        else []
    )
    assert list(lint(tmp_path / "net.onnx", "tensorrt-rtx")) == expected


def test_operators_that_the_parser_does_not_know() -> None:
    """All of ONNX's, asked of the parser itself."""
    parser = Parsed(wrong_files.plain("Relu")).parser
    known = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
    assert {name for name in known if not parser.supports_operator(name)} == NO_IMPORT & known


@pytest.mark.parametrize("op", wrong_files.PLAIN)
def test_operators_by_themselves(op: str, tmp_path: Path) -> None:
    """Detectors' and others' operators: what neither parser nor builder takes, the lint names, and nothing else."""
    module()
    model = wrong_files.plain(op)
    onnx.save(model, tmp_path / "net.onnx")
    parsed = Parsed(model)
    refused = bool(parsed.errors) or bool(parsed.build())
    assert {place for place, _ in parsed.errors} <= {"op", ""}  # of reductions it names no node
    if op == "RoiAlign":  # its plugin asks for a driver
        assert [finding.severity for finding in lint(tmp_path / "net.onnx", "tensorrt-rtx")] == ["warning"]
    else:
        assert errors(tmp_path / "net.onnx", "tensorrt-rtx") == ({"op"} if refused else set())
    in_rtx_alone = op in NOT_IN_RTX or op.startswith(("RoiAlign", "ScatterElements"))
    assert errors(tmp_path / "net.onnx", "tensorrt") == ({"op"} if refused and not in_rtx_alone else set())
