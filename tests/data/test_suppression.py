"""Suppression inside the file finds what NumPy finds at run time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from pydeploy.data.boxes.detections import Cleaning, detections
from pydeploy.data.boxes.priors import small
from pydeploy.data.boxes.suppression import with_suppression
from pydeploy.errors import Mismatch
from pydeploy.export import export
from pydeploy.models import build

CLEANING = Cleaning(score=0.05, iou=0.45, most=200, candidates=10_000)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    torch.manual_seed(0)
    model = build("ssd_small", num_classes=3, width=8).eval()
    for head in (*model.scores, *model.boxes):  # as if it had learned: sure of something, and boxes that move
        torch.nn.init.normal_(head.weight, std=0.3)
    top = tmp_path_factory.mktemp("ssd")
    raw = export(model, torch.zeros(2, 3, 64, 64), top / "raw.onnx", output_names=["scores", "boxes"])
    return raw, with_suppression(raw, top / "whole.onnx", small(64), CLEANING)


def outputs(path: Path, image: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return dict(
        zip(
            [one.name for one in session.get_outputs()],
            session.run(None, {session.get_inputs()[0].name: image}),
            strict=True,
        )
    )


def test_the_file_selects_what_numpy_selects(files: tuple[Path, Path]) -> None:
    raw, whole = files
    image = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
    plain, found = outputs(raw, image), outputs(whole, image)
    for number in range(2):
        mine = detections(plain["scores"][number], plain["boxes"][number], small(64).boxes, CLEANING)
        assert len(mine) > 20
        chosen = found["selected"][found["selected"][:, 0] == number]
        scores = found["shares"][number][chosen[:, 1], chosen[:, 2]]
        boxes = found["decoded"][number][chosen[:, 2]]
        order = np.argsort(-scores, kind="stable")[: CLEANING.most]
        np.testing.assert_allclose(scores[order], mine.scores, rtol=1e-4)
        theirs = sorted(zip(chosen[order, 1].tolist(), boxes[order].round(3).tolist(), strict=True))
        ours = sorted(zip(mine.labels.tolist(), mine.boxes.round(3).tolist(), strict=True))
        assert [label for label, _ in theirs] == [label for label, _ in ours]
        np.testing.assert_allclose([box for _, box in theirs], [box for _, box in ours], atol=2e-3)


@pytest.mark.openvino
def test_openvino_selects_the_same(files: tuple[Path, Path]) -> None:
    openvino = pytest.importorskip("openvino")
    image = np.random.default_rng(1).normal(size=(2, 3, 64, 64)).astype(np.float32)
    wanted = outputs(files[1], image)["selected"]
    compiled = openvino.compile_model(str(files[1]), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled([image])["selected"]
    assert {tuple(row) for row in found.tolist() if row[0] >= 0} == {tuple(row) for row in wanted.tolist()}


def test_files_of_other_networks_are_refused(tmp_path: Path, files: tuple[Path, Path]) -> None:
    with pytest.raises(Mismatch, match="the network gives 680 boxes"):
        with_suppression(files[0], tmp_path / "x.onnx", small(128), CLEANING)
    with pytest.raises(Mismatch, match="expected 'scores'"):
        with_suppression(files[1], tmp_path / "x.onnx", small(64), CLEANING)
    assert not (tmp_path / "x.onnx").exists()
