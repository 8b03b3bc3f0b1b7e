"""Ways to write one ONNX file: weights elsewhere, open shapes, initializers as inputs; all are built, and compute the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from pydeploy.backends.base import Engine, reopen
from pydeploy.cli.app import app
from pydeploy.errors import ConfigError, DataError
from pydeploy.onnxfile.fixed_shapes import with_fixed_shapes

RNG = np.random.default_rng(0)
WEIGHTS = {"w": RNG.normal(size=(4, 3, 3, 3)).astype(np.float32), "b": RNG.normal(size=4).astype(np.float32),
           "f": RNG.normal(size=(4, 5)).astype(np.float32)}  # fmt: skip


def net(shape: tuple[int | str | None, ...] | None = (1, 3, 8, 8), *, opset: int = 17, ir: int = 8, constants: bool = False,
        as_inputs: bool = False, second: tuple[int | str, ...] | None = None) -> onnx.ModelProto:  # fmt: skip
    """conv + relu + mean + matmul; `second` is the shape of a second input that is added to the image."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1] * 4, name="c"),
        helper.make_node("Relu", ["c"], ["r"], name="r"),
        helper.make_node("GlobalAveragePool", ["r"], ["g"], name="g"),
        helper.make_node("Flatten", ["g"], ["h"], name="h"),
        helper.make_node("MatMul", ["h", "f"], ["y"], name="m"),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    if second is not None:
        nodes[0].input[0] = "s"
        nodes.insert(0, helper.make_node("Add", ["x", "z"], ["s"], name="a"))
        inputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, second))
    tensors = [numpy_helper.from_array(array, name) for name, array in WEIGHTS.items()]
    if constants:
        nodes = [helper.make_node("Constant", [], [t.name], value=t, name=f"k{t.name}") for t in tensors] + nodes
        tensors = []
    if as_inputs or ir < 4:
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors]
    first = shape[0] if shape else None
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [first, 5])
    graph = helper.make_graph(nodes, "net", inputs, [output], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = ir
    return model


def expected(x: np.ndarray) -> np.ndarray:
    """The network in NumPy."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    c = np.einsum("nchwij,ocij->nohw", windows, WEIGHTS["w"]) + WEIGHTS["b"][:, None, None]
    return np.maximum(c, 0).mean((2, 3)) @ WEIGHTS["f"]


def computes(path: Path, *feeds: np.ndarray) -> None:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert all(isinstance(size, int) for spec in session.get_inputs() for size in spec.shape)
    names = [spec.name for spec in session.get_inputs()]
    got = session.run(None, dict(zip(names, feeds, strict=False)))[0]
    np.testing.assert_allclose(got, expected(sum(feeds)), rtol=1e-4, atol=1e-5)  # type: ignore[arg-type]


FORMS = st.fixed_dictionaries(
    {
        "shape": st.sampled_from([
            (2, 3, 8, 8), ("N", 3, 8, 8), (None, 3, 8, 8), ("N", "C", "H", "W"), (2, 3, "S", "S"), (None,) * 4, None,
        ]),
        "opset": st.integers(9, 20),
        "ir": st.sampled_from([3, 4, 7, 8, 9, 10]),
        "constants": st.booleans(),
        "as_inputs": st.booleans(),
    }
)  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(form=FORMS, external=st.sampled_from(["inside", "one file", "many files"]))
def test_any_form_is_whole_and_fixed(
    tmp_path_factory: pytest.TempPathFactory, form: dict[str, object], external: str
) -> None:
    folder = tmp_path_factory.mktemp("forms")
    path = folder / "m.onnx"
    onnx.save(net(**form), path, save_as_external_data=external != "inside", all_tensors_to_one_file=external == "one file",
              location="weights.bin" if external == "one file" else None, size_threshold=0, convert_attribute=True)  # type: ignore[arg-type]  # fmt: skip
    made = with_fixed_shapes(path, {"x": (2, 3, 8, 8)}, 2)
    outside = external != "inside"
    assert (made is None) == (form["shape"] == (2, 3, 8, 8) and not outside)
    whole = folder / "elsewhere" / "whole.onnx"
    whole.parent.mkdir()
    if made is not None:
        onnx.checker.check_model(made, full_check=True)
        onnx.save(made, whole)
    computes(path if made is None else whole, np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32))


def test_one_symbol_is_one_number(tmp_path: Path) -> None:
    onnx.save(net(("N", 3, "H", "W"), second=("N", 3, "H", "W")), path := tmp_path / "m.onnx")
    onnx.save(with_fixed_shapes(path, {"x": (2, 3, 8, 6)}, 2), whole := tmp_path / "w.onnx")
    one, two = np.random.default_rng(2).normal(size=(2, 2, 3, 8, 6)).astype(np.float32)
    computes(whole, one, two)
    with pytest.raises(ConfigError, match="'H' cannot be 8 and 9 at once"):
        with_fixed_shapes(path, {"x": (2, 3, 8, 6), "z": (2, 3, 9, 6)}, 2)


@pytest.mark.parametrize(
    ("shape", "shapes", "error", "text"),
    [
        (("N", 3, "H", "W"), {}, DataError, r"input 'x' has the open shape \[2, 3, H, W\]; fix it with --shape x=2x3x...x..."),
        (("N", 3, 8, 8), {"x": (2, 4, 8, 8)}, ConfigError, r"input 'x' is \[N, 3, 8, 8\]; the shape given is \[2, 4, 8, 8\]"),
        (("N", 3, 8, 8), {"x": (2, 3, 8)}, ConfigError, r"the shape given is \[2, 3, 8\]"),
        (("N", 3, 8, 8), {"y": (2, 3, 8, 8)}, ConfigError, r"has no input 'y', it has \['x'\]"),
        (None, {}, DataError, r"open shape \[\]; fix it with --shape x=..."),
    ],
)  # fmt: skip
def test_what_stays_open_or_contradicts(
    tmp_path: Path, shape: tuple[int | str, ...], shapes: dict[str, tuple[int, ...]], error: type, text: str
) -> None:
    onnx.save(net(shape), tmp_path / "m.onnx")
    with pytest.raises(error, match=text):
        with_fixed_shapes(tmp_path / "m.onnx", shapes, 2)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    onnx.save(net(), path := tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(DataError, match=r"weights.bin"):
        with_fixed_shapes(path, {}, 1)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_build_takes_what_torch_writes(tmp_path: Path, target: str) -> None:
    """Weights in a second file and an open batch, built by the verb; the engine computes what NumPy does."""
    pytest.importorskip(target)
    onnx.save(
        net(("N", 3, "H", "W")),
        path := tmp_path / "m.onnx",
        save_as_external_data=True,
        location="m.data",
        size_threshold=0,
    )
    out = tmp_path / "m.engine"
    asked = ["build", str(path), "--target", f"{target}:fp32", "--out", str(out), "--threads", "1"]
    refused = CliRunner().invoke(app, asked)
    assert refused.exit_code == 2 or "--shape x=" in str(refused.exception)
    made = CliRunner().invoke(app, [*asked, "--shape", "x=2x3x8x8"])
    assert made.exit_code == 0, made.output
    assert "m.engine.onnx: m.onnx with all weights inside and fixed shapes" in made.output
    (tmp_path / "m.data").unlink()
    engine = Engine.load(out)
    engine.require_onnx(tmp_path / "m.engine.onnx")
    x = np.random.default_rng(3).normal(size=(2, 3, 8, 8)).astype(np.float32)
    with reopen(engine.target).open(engine) as session:
        np.testing.assert_allclose(session.run({"x": x})["y"], expected(x), rtol=1e-4, atol=1e-5)
