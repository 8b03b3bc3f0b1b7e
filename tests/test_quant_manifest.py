from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydeploy.errors import ConfigError, DataError
from pydeploy.quant.manifest import Manifest, load_manifest

SHIPPED = sorted((Path(__file__).parent.parent / "calib").rglob("*.yaml"))


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
        ("- a\n", "must hold a mapping, got list"),
        ("", "must hold a mapping, got NoneType"),
        ("a: [", "not readable YAML"),
    ],
    ids=["unknown-key", "no-source", "text-count", "bool-count", "zero", "negative-seed", "number", "hash", "list",
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
    assert pinned.require([samples]) == pinned.require([samples[:1], samples[1:]]) == pinned.sha256
    with pytest.raises(DataError, match="the data or their preprocessing changed"):
        pinned.require([samples + 1])
    assert Manifest("set", count=6).require([samples]) == pinned.sha256
