"""Small trees of pictures: every class a colour of its own, with noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (30, 40, 220), "green": (40, 200, 50), "red": (220, 30, 40)}


def picture(name: str, seed: int, size: tuple[int, int] = (24, 30)) -> np.ndarray:
    noise = np.random.default_rng([seed, sum(name.encode())]).normal(0, 25, (*size, 3))
    return np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8)


def tree(top: Path, count: int, classes: Sequence[str] = tuple(COLOURS), suffix: str = "png", seed: int = 0) -> Path:
    """``top/CLASS/*.suffix``, `count` pictures a class, all of different sizes."""
    for name in classes:
        (top / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = picture(name, seed + index, (24 + index % 5, 30 - index % 3))
            Image.fromarray(pixels).save(top / name / f"{index:03}.{suffix}")
    return top


def two_splits(top: Path, train: int = 12, test: int = 5) -> Path:
    tree(top / "train", train)
    tree(top / "val", test, seed=1000)
    return top
