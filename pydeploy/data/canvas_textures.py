"""Drawn cloth: woven textures, some with a scratch, a spot or a hole, and masks of these.

A data set for inspection that anyone can make offline. A piece is a function of the settings, the split and its number alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pydeploy.data.canvas import clouds
from pydeploy.data.picture_set import SPLITS, require_split
from pydeploy.errors import ConfigError, DataError

Plane = NDArray[np.float32]
Damage = Callable[[np.random.Generator, Plane], tuple[Plane, NDArray[np.bool_]]]
"""A cloth with grey levels in 0..255 to a damaged one and its mask."""


@dataclass(frozen=True)
class Woven:
    """Pieces of cloth of `size` (height and width), a share `defective` of them damaged; `seed` draws everything."""

    size: tuple[int, int] = (128, 128)
    train_size: int = 600
    test_size: int = 300
    defective: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        for key, value, least in (("size", min(self.size), 32), ("train_size", self.train_size, 4),
                                  ("test_size", self.test_size, 4), ("seed", self.seed, 0)):  # fmt: skip
            if value < least:
                raise ConfigError(f"setting '{key}' of the woven textures must be at least {least}, got {value}")
        if not 0 < self.defective < 1:
            raise ConfigError(
                f"setting 'defective' of the woven textures must lie between 0 and 1, got {self.defective}"
            )

    def count(self, split: str) -> int:
        """Number of pieces in ``train`` or ``test``."""
        require_split(split)
        return self.train_size if split == "train" else self.test_size

    def damaged(self, split: str) -> NDArray[np.bool_]:
        """Which pieces have a defect: evenly strewn, at least one of each kind of piece."""
        count = self.count(split)
        wanted = min(count - 1, max(1, round(self.defective * count)))
        steps = np.arange(count + 1) * wanted // count
        return np.asarray(np.diff(steps) > 0)

    def digest(self) -> str:
        """SHA-256 of what pieces are drawn from."""
        return hashlib.sha256(f"woven 1 {self}".encode()).hexdigest()

    def piece(self, split: str, index: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Picture ``(H, W, 1)`` and mask ``(H, W)`` of this number; the same in every process."""
        if not 0 <= index < self.count(split):
            raise DataError(f"there are {self.count(split)} pieces of cloth to {split}, none of number {index}")
        rng = np.random.default_rng([self.seed, SPLITS.index(split), index])
        cloth, mask = _weave(rng, self.size), np.zeros(self.size, np.bool_)
        if self.damaged(split)[index]:
            cloth, mask = DAMAGES[int(rng.integers(len(DAMAGES)))](rng, cloth)
        lit = cloth + 12 * clouds(rng, self.size) + rng.normal(0, 5, self.size)
        return np.clip(np.rint(lit), 0, 255).astype(np.uint8)[:, :, None], mask


def _weave(rng: np.random.Generator, size: tuple[int, int]) -> Plane:
    """Threads over and under each other, each of a shade of its own."""
    period, tone, depth = rng.uniform(5, 8), rng.uniform(90, 170), rng.uniform(18, 30)
    waves, shades = [], []
    for side in size:
        at = (np.arange(side) + rng.uniform(0, period)) / period
        threads = rng.normal(0, 4, int(at[-1]) + 1)
        waves.append(np.cos(2 * np.pi * at))
        shades.append(threads[at.astype(np.int64)])
    over = waves[0][:, None] * waves[1][None]
    cloth = tone + depth * over + np.where(over > 0, shades[0][:, None], shades[1][None])
    return np.asarray(cloth, np.float32)


def _scratch(rng: np.random.Generator, cloth: Plane) -> tuple[Plane, NDArray[np.bool_]]:
    """A thin line across the threads, a little bent."""
    rows, columns = np.indices(cloth.shape)
    centre, angle = _centre(rng, cloth), rng.uniform(0, np.pi)
    along = (rows - centre[0]) * np.sin(angle) + (columns - centre[1]) * np.cos(angle)
    across = (rows - centre[0]) * np.cos(angle) - (columns - centre[1]) * np.sin(angle)
    length = rng.uniform(0.2, 0.4) * min(cloth.shape)
    bent = across + rng.uniform(-0.1, 0.1) * along**2 / length
    mask = (np.abs(bent) < rng.uniform(1.0, 2.0)) & (np.abs(along) < length)
    return np.where(mask, cloth + rng.choice([-1, 1]) * rng.uniform(45, 80), cloth).astype(np.float32), mask


def _spot(rng: np.random.Generator, cloth: Plane) -> tuple[Plane, NDArray[np.bool_]]:
    """A stain with a soft edge: the weave shows through."""
    reach = _blob(rng, cloth, rng.uniform(0.05, 0.12))
    strength = np.clip(1.5 - reach, 0, 1)
    return np.asarray(cloth + rng.choice([-1, 1]) * rng.uniform(35, 60) * strength, np.float32), reach < 1.25


def _hole(rng: np.random.Generator, cloth: Plane) -> tuple[Plane, NDArray[np.bool_]]:
    """No threads, a dark ground."""
    mask = _blob(rng, cloth, rng.uniform(0.03, 0.08)) < 1
    return np.where(mask, rng.uniform(15, 45), cloth).astype(np.float32), mask


def _blob(rng: np.random.Generator, cloth: Plane, radius: float) -> Plane:
    """Distance from a centre over a radius (a share of the shorter side) that differs with the direction."""
    rows, columns = np.indices(cloth.shape)
    centre = _centre(rng, cloth)
    angle = np.arctan2(rows - centre[0], columns - centre[1])
    ragged = 1 + sum(rng.normal(0, 0.15) * np.cos(wave * angle + rng.uniform(0, 2 * np.pi)) for wave in (2, 3, 5))
    size = max(3.0, radius * min(cloth.shape)) * np.clip(ragged, 0.6, 1.6)
    return np.asarray(np.hypot(rows - centre[0], columns - centre[1]) / size, np.float32)


def _centre(rng: np.random.Generator, cloth: Plane) -> NDArray[np.float64]:
    """Anywhere but near the edges."""
    return np.asarray([rng.uniform(0.15, 0.85) * side for side in cloth.shape])


DAMAGES: tuple[Damage, ...] = (_scratch, _spot, _hole)
