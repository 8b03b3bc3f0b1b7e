"""A run calibrates on what its manifest names, or refuses it before any work; and says what was used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pydeploy.data.image_sets import synthetic
from pydeploy.data.manifest import Manifest, load_manifest
from pydeploy.data.preprocessing import Preprocessing
from pydeploy.errors import ConfigError, DataError, DeployError
from pydeploy.run.config import parse
from pydeploy.run.job import open_job
from pydeploy.tasks.named import build_task
from pydeploy.tasks.samples import calibration_batches, exact_batches, samples_digest
from quiet import Quiet

SIZE = 12
DATA = {"size": SIZE, "train_size": 64, "test_size": 32}
TASK = build_task("classification", data="synthetic", data_settings=DATA)
OWN = Manifest("synthetic", count=20)


def samples(manifest: Manifest) -> np.ndarray:
    return np.concatenate([feeds["image"] for feeds in calibration_batches(TASK, manifest)])


def drawn(manifest: Manifest, available: int) -> np.ndarray:
    """The documented choice of samples, by NumPy alone."""
    return np.sort(np.random.default_rng(manifest.seed).permutation(available)[: manifest.count])


@pytest.mark.parametrize("split", ["train", "test"])
def test_own_data_with_its_own_or_another_preprocessing(split: str) -> None:
    images = synthetic(**DATA)
    pixels = (images.train_images if split == "train" else images.test_images)[
        drawn(OWN, 64 if split == "train" else 32)
    ]
    for settings, mean, std in ((None, 0.5, 0.25), (Preprocessing((0.1,), (0.7,)), 0.1, 0.7)):
        manifest = replace(OWN, split=split, preprocessing=settings or "")
        np.testing.assert_allclose(samples(manifest), (pixels / 255 - mean) / std, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["arrays", "images", "folder", "list"])
def test_files_are_read(tmp_path: Path, kind: str) -> None:
    from PIL import Image

    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (24, SIZE, SIZE, 1), np.uint8)
    settings = {"mean": [0.4], "std": [0.3]}
    (tmp_path / "folder").mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image[:, :, 0]).save(tmp_path / "folder" / f"{number:02}.png")
    (tmp_path / "list.txt").write_text("".join(f"folder/{number:02}.png\n" for number in range(24)))
    prepared = ((pixels / 255 - 0.4) / 0.3).astype(np.float32).transpose(0, 3, 1, 2)
    np.save(tmp_path / "images.npy", pixels)
    np.save(tmp_path / "arrays.npy", prepared)
    source = {"arrays": "arrays.npy", "images": "images.npy", "folder": "./folder", "list": "list.txt"}[kind]
    lines = {"source": source, "count": 10, "seed": 5, "preprocessing": "" if kind == "arrays" else settings}
    (tmp_path / "set.yaml").write_text(json.dumps(lines))
    manifest = load_manifest(tmp_path / "set.yaml")
    np.testing.assert_allclose(samples(manifest), prepared[drawn(manifest, 24)], rtol=1e-5, atol=1e-6)
    # Batches of another size than the reader's own buffers hold the same samples.
    exact = np.concatenate([feeds["image"].copy() for feeds in exact_batches(calibration_batches(TASK, manifest), 5)])
    np.testing.assert_array_equal(exact, samples(manifest))


def test_the_digest_follows_the_samples() -> None:
    changes: list[dict[str, Any]] = [{"seed": 1}, {"count": 19}, {"split": "test"},
                                     {"preprocessing": Preprocessing((0.5,), (0.3,))}]  # fmt: skip
    assert len({samples_digest(TASK, replace(OWN, **change)) for change in [{}, *changes]}) == 5
    assert samples_digest(TASK, replace(OWN, preprocessing="synthetic", max_skipped=0.5)) == samples_digest(TASK, OWN)


def config(manifest: Path) -> Any:
    data = {"task": {"data": "synthetic", "options": {"data_settings": DATA}}, "model": {"name": "resnet8"},
            "train": {"batch_size": 64}, "finetune": {"batch_size": 64}, "target": {"backend": "null"},
            "prune": {"budget": 0.5, "batch_size": 64}, "quantize": {"calibration": str(manifest)}}  # fmt: skip
    return parse(data, "test")


@pytest.mark.parametrize(
    ("lines", "error", "text"),
    [
        ({"source": "./no_such_folder", "preprocessing": "imagenet"}, DataError, "no_such_folder does not exist"),
        ({"source": "missing.npy"}, DataError, "missing.npy does not exist"),
        ({"source": "synthetic", "preprocessing": "imagenet"}, DeployError, "channels|shape"),
        ({"source": "synthetic", "preprocessing": {"mean": [0.5], "std": [0.5], "resize": 8}}, ConfigError, "takes"),
        ({"source": "digits"}, ConfigError, r"\(1, 8, 8\), the network takes \(1, 12, 12\)"),
        ({"source": "sinthetic"}, ConfigError, "unknown data set 'sinthetic' .did you mean 'synthetic'"),
        ({"source": "synthetic", "split": "trian"}, ConfigError, "unknown split 'trian' .did you mean 'train'"),
        ({"source": "synthetic", "count": 65}, DataError, "asks for 65 samples of synthetic/train, which has 64"),
        ({"source": "synthetic", "sha256": "0" * 64}, DataError, "the data or their preprocessing changed"),
        ({"source": "large.npy"}, ConfigError, r"\(1, 32, 32\), the network takes \(1, 12, 12\)"),
        ({"source": "./broken", "preprocessing": {"mean": [0.5], "std": [0.5]}}, DataError, "cannot be read"),
    ],
    ids=lambda value: value.get("source") if isinstance(value, dict) else None,
)
def test_what_cannot_be_used_is_refused_before_any_work(
    tmp_path: Path, lines: dict[str, Any], error: type[Exception], text: str
) -> None:
    np.save(tmp_path / "large.npy", np.zeros((20, 1, 32, 32), np.float32))
    (tmp_path / "broken").mkdir()
    for number in range(20):
        (tmp_path / "broken" / f"{number}.png").write_bytes(b"no picture")
    (tmp_path / "set.yaml").write_text(json.dumps({"count": 16, **lines}))
    with pytest.raises(error, match=text):
        open_job(config(tmp_path / "set.yaml"), Quiet())
