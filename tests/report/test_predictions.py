"""`pydeploy predict`: an engine that tells the colours of pictures, against NumPy."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from picture_trees import picture, tree
from pydeploy.backends.base import open_backend
from pydeploy.cli import main
from pydeploy.data.deployment import FILE, Deployment
from pydeploy.data.preprocessing import Preprocessing
from pydeploy.errors import DataError

WAY = Deployment(Preprocessing((0.5, 0.4, 0.3), (0.2, 0.25, 0.3), 18, 16), ("red", "green", "blue"))


def put_engine(folder: Path, batch: int = 2, way: Deployment = WAY, size: int = 16) -> Path:
    """The mean of every channel, times three: the picture's own colour is the largest logit."""
    nodes = [helper.make_node("GlobalAveragePool", ["image"], ["mean"]), helper.make_node("Flatten", ["mean"], ["flat"]),
             helper.make_node("Mul", ["flat", "three"], ["logits"])]  # fmt: skip
    ends = [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, size, size]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3])]  # fmt: skip
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], [numpy_helper.from_array(np.float32(3), "three")])
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), folder / "m.onnx")
    open_backend("onnxruntime", batch=batch, threads=1).build(folder / "m.onnx", folder / "model.engine")
    way.save(folder)
    return folder / "model.engine"


def predict(*arguments: object, code: int = 0) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pydeploy", "predict", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            main()
    assert (done.value.code or 0) == code


def expected(path: Path) -> np.ndarray:
    sample = WAY.preprocessing(np.asarray(Image.open(path))[None])[0].astype(np.float64)
    powers = np.exp(3 * sample.mean(axis=(1, 2)))
    return powers / powers.sum()


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_labels_and_scores_are_those_of_numpy(tmp_path: Path, batch: int) -> None:
    engine = put_engine(tmp_path / "engine", batch)
    top = tree(tmp_path / "pictures", 3)
    predict(engine, top / "red", top / "blue", top / "green" / "001.png", "--out", tmp_path / "out", "--top", 3)
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())["predictions"]
    assert [Path(one["path"]).parent.name for one in found] == ["red"] * 3 + ["blue"] * 3 + ["green"]
    for one in found:
        assert one["label"] == Path(one["path"]).parent.name
        scores = dict(zip(WAY.class_names, expected(Path(one["path"])), strict=True))
        assert [entry["label"] for entry in one["top"]] == sorted(scores, key=lambda name: -scores[name])
        for entry in one["top"]:
            assert entry["score"] == pytest.approx(scores[entry["label"]], abs=1e-5)
    drawn = sorted((tmp_path / "out").glob("*.png"))
    assert len(drawn) == 7
    with Image.open(drawn[0]) as image, Image.open(found[0]["path"]) as before:
        assert image.size == before.size
        assert (
            np.abs(np.asarray(image, int)[:6, :6] - np.asarray(before, int)[:6, :6]).mean() > 20
        )  # the label's ground


def test_json_and_no_drawing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine, top = put_engine(tmp_path / "engine"), tree(tmp_path / "pictures", 1)
    predict(engine, top, "--out", tmp_path / "out", "--json", "--no-draw", "--top", 1)
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.json"]


def test_a_broken_picture_is_named_and_the_others_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine, top = put_engine(tmp_path / "engine"), tree(tmp_path / "pictures", 2)
    (top / "green" / "001.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    predict(engine, top, "--out", tmp_path / "out", code=2)
    assert "1 of 6 pictures cannot be read" in capsys.readouterr().err
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())["predictions"]
    assert [("error" in one) for one in found] == [False, False, False, True, False, False]
    assert all(one["label"] == Path(one["path"]).parent.name for one in found if "label" in one)


@pytest.mark.parametrize(("change", "message"), [
    (lambda place: (place / FILE).unlink(), "preprocessing.json does not exist: it says how pictures"),
    (lambda place: (place / FILE).write_text("{}"), "preprocessing.json: not what an engine's preprocessing"),
    (lambda place: Deployment(WAY.preprocessing, ("a", "b")).save(place),
     "the engine gives (3,) numbers a picture, the preprocessing names 2"),
    (lambda place: Deployment(Preprocessing((0.5,) * 3, (0.5,) * 3, 18, 12), ("a", "b", "c")).save(place),
     "samples of (3, 12, 12), the engine takes"),
    (lambda place: Deployment(Preprocessing((0.5,) * 3, (0.5,) * 3), ("a", "b", "c")).save(place), "samples of different sizes"),
])  # fmt: skip
def test_what_does_not_belong_together_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, message: str
) -> None:
    engine, top = put_engine(tmp_path / "engine"), tree(tmp_path / "pictures", 4)
    change(tmp_path / "engine")
    predict(engine, top, "--out", tmp_path / "out", code=2)
    assert message in " ".join(capsys.readouterr().err.split())


def test_no_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = put_engine(tmp_path / "engine")
    (tmp_path / "empty").mkdir()
    predict(engine, tmp_path / "empty", "--out", tmp_path / "out", code=2)
    predict(engine, tmp_path / "nowhere", "--out", tmp_path / "out", code=2)
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == ["error", "error"]


def test_any_label_can_be_drawn(tmp_path: Path) -> None:
    names = ("красный", "żółw 龟", "b\u202elue")
    engine = put_engine(tmp_path / "engine", way=Deployment(WAY.preprocessing, names))
    Image.fromarray(picture("red", 0)).save(tmp_path / "x.png")
    predict(engine, tmp_path / "x.png", "--out", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())["predictions"][0]["label"] == "красный"
    assert len(list((tmp_path / "out").glob("*.png"))) == 1


def test_the_file_beside_the_engine_comes_back(tmp_path: Path) -> None:
    assert Deployment.load(WAY.save(tmp_path)) == WAY
    with pytest.raises(DataError, match="does not exist"):
        Deployment.load(tmp_path / "other.json")
