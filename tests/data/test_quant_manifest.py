from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydeploy.data.manifest import Manifest, load_manifest
from pydeploy.data.preprocessing import IMAGENET, Preprocessing
from pydeploy.errors import ConfigError, DataError

SHIPPED = sorted((Path(__file__).parents[2] / "calib").rglob("*.yaml"))


def test_shipped_manifests_are_valid() -> None:
    assert SHIPPED
    for path in SHIPPED:
        manifest = load_manifest(path)
        assert manifest.split == "train"  # the test set must never be seen before the report
        assert len(manifest.indices(manifest.count)) == manifest.count


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("source: a\nspilt: train\n", "unknown key 'spilt' .did you mean 'split'"),
        ("split: train\n", "key 'source' is required"),
        ("source: a\ncount: many\n", "'count' must be a whole number, got 'many'"),
        ("source: a\ncount: true\n", "'count' must be a whole number, got True"),
        ("source: a\ncount: 0\n", "'count' must be at least 1"),
        ("source: a\nseed: -1\n", "'seed' at least 0"),
        ("source: 3\n", "'source' must be text, got 3"),
        ("source: a\nsha256: abc\n", "64 hexadecimal digits"),
        ("source: a\nmax_skipped: 1\n", "'max_skipped' is a share"),
        ("source: a\npreprocessing: imagent\n", "did you mean 'imagenet'"),
        ("source: a\npreprocessing: {mean: [0.5], sdt: [1]}\n", "unknown key 'preprocessing.sdt'"),
        ("source: a\npreprocessing: {mean: 1, std: [1]}\n", "'preprocessing.mean' must be a list"),
        ("source: a\npreprocessing: {mean: [0], std: [0]}\n", "std positive"),
        ("source: a\npreprocessing: {mean: [0], std: [1], crop: [1, 2, 3]}\n", "'preprocessing.crop' must be"),
        ("- a\n", "must hold a mapping, got list"),
        ("", "must hold a mapping, got NoneType"),
        ("a: [", "not readable YAML"),
    ],
    ids=["unknown-key", "no-source", "text-count", "bool-count", "zero", "negative-seed", "number", "hash", "share",
         "preprocessing-name", "preprocessing-key", "mean", "std", "crop", "list",
         "empty", "not-yaml"],
)  # fmt: skip
def test_wrong_manifests_say_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "set.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_manifest(path)


def test_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml does not exist"):
        load_manifest(tmp_path / "none.yaml")


@given(available=st.integers(1, 300), count=st.integers(1, 300), seed=st.integers(0, 9))
def test_indices_are_a_repeatable_subset(available: int, count: int, seed: int) -> None:
    manifest = Manifest("set", count=count, seed=seed)
    if count > available:
        with pytest.raises(DataError, match=f"asks for {count} samples of set/train, which has {available}"):
            manifest.indices(available)
        return
    found = manifest.indices(available)
    assert len(set(found.tolist())) == count
    assert (np.diff(found) > 0).all()
    assert 0 <= found[0] <= found[-1] < available
    assert np.array_equal(found, manifest.indices(available))


def test_seeds_draw_different_samples() -> None:
    assert not np.array_equal(Manifest("s", count=9, seed=0).indices(99), Manifest("s", count=9, seed=1).indices(99))


def test_pinned_hash_accepts_any_batching_and_refuses_other_values() -> None:
    samples = np.arange(24, dtype=np.float32).reshape(6, 4)
    pinned = Manifest("set", count=6, sha256=hashlib.sha256(samples.tobytes()).hexdigest())
    for parts in ([samples], [samples[:1], samples[1:]]):
        assert np.array_equal(np.concatenate(list(pinned.checked(parts))), samples)
    with pytest.raises(DataError, match="the data or their preprocessing changed"):
        list(pinned.checked([samples + 1]))
    assert len(list(Manifest("set", count=6).checked([samples]))) == 1


def test_preprocessing_is_written_named_or_the_data_sets_own(tmp_path: Path) -> None:
    path = tmp_path / "set.yaml"
    path.write_text("source: ./images\npreprocessing: {mean: [0.5], std: [0.25], resize: [8, 9]}\n")
    assert load_manifest(path).settings == Preprocessing((0.5,), (0.25,), (8, 9))
    assert load_manifest(path).path == tmp_path / "images"
    path.write_text("source: x\npreprocessing: imagenet\n")
    assert load_manifest(path).settings == IMAGENET
    assert Manifest("x").settings is Manifest("x", preprocessing="x").settings is None
    assert Manifest("x").path is None


def test_the_key_follows_every_setting() -> None:
    base = Manifest("a")
    others = [replace(base, seed=1), replace(base, count=9), replace(base, preprocessing="imagenet"), Manifest("b")]
    assert len({m.key() for m in [base, *others]}) == 5
    assert base.key() == Manifest("a").key()


def test_the_pinned_set_is_the_evaluations_to_the_byte() -> None:
    from pydeploy.data.image_sets import find_fashion_mnist
    from pydeploy.tasks.classify import classification
    from pydeploy.tasks.samples import calibration_batches, manifest_batches

    try:
        find_fashion_mnist(download=False)
    except DataError as error:
        pytest.skip(f"needs Fashion-MNIST: {error}")
    manifest = load_manifest(SHIPPED[0].parent / "fashion_mnist.yaml")
    alone = np.concatenate([batch.copy() for batch in manifest_batches(manifest)])  # raises unless it is the pinned set
    task = classification("fashion_mnist")
    evaluated = np.concatenate([feeds["image"].copy() for feeds in calibration_batches(task, manifest)])
    assert manifest.sha256
    np.testing.assert_array_equal(alone, evaluated)


def test_a_set_that_changed_is_refused() -> None:
    from pydeploy.tasks.classify import classification
    from pydeploy.tasks.samples import calibration_batches, manifest_batches

    manifest = load_manifest(SHIPPED[0].parent / "smoke.yaml")
    assert sum(len(batch) for batch in manifest_batches(manifest)) == manifest.count
    other = replace(manifest, sha256="0" * 64)
    for batches in (manifest_batches(other), calibration_batches(classification("synthetic"), other)):
        with pytest.raises(DataError, match="the data or their preprocessing changed"):
            list(batches)
