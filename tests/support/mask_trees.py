"""Small data sets of pictures with masks, in the layouts of the real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (24, 32)


def pair(seed: int, values: list[int], size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """A noisy picture and a mask of vertical stripes of `values`; brightness follows the stripe."""
    rng = np.random.default_rng(seed)
    columns = np.array(values)[np.arange(size[1]) * len(values) // size[1]]
    mask = np.broadcast_to(columns, size).astype(np.uint8)
    grey = np.linspace(20, 235, len(values))[np.arange(size[1]) * len(values) // size[1]]
    picture = np.clip(grey[None, :, None] + rng.normal(0, 8, (*size, 3)), 0, 255).astype(np.uint8)
    return picture, mask


def write(picture_at: Path, mask_at: Path, picture: np.ndarray, mask: np.ndarray) -> None:
    for path, array in ((picture_at, picture), (mask_at, mask)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


def camvid_tree(root: Path, count: int = 4, values: list[int] | None = None) -> Path:
    """SegNet's layout of CamVid; the last training mask is void all over."""
    for part, amount in (("train", count), ("val", 2), ("test", 2)):
        for number in range(amount):
            void = part == "train" and number == count - 1
            picture, mask = pair(number, [11] if void else values or [0, 1, 3, 8, 11])
            write(root / part / f"{number:03}.png", root / f"{part}annot" / f"{number:03}.png", picture, mask)
    return root


def cityscapes_tree(root: Path, count: int = 4) -> Path:
    """Cityscapes: two cities, ids of labels as masks."""
    for part, amount in (("train", count), ("val", 2)):
        for number in range(amount):
            city = ("aachen", "bochum")[number % 2]
            name = f"{city}_{number:06}_000019"
            picture, mask = pair(number, [0, 7, 11, 23, 26, 33])
            write(root / "leftImg8bit" / part / city / f"{name}_leftImg8bit.png",
                  root / "gtFine" / part / city / f"{name}_gtFine_labelIds.png", picture, mask)  # fmt: skip
            write(root / "gtFine" / part / city / f"{name}_gtFine_color.png",
                  root / "gtFine" / part / city / f"{name}_gtFine_instanceIds.png", picture, mask)  # fmt: skip
    return root


def folder_tree(root: Path, count: int = 6, values: list[int] | None = None, *, split: bool = False) -> Path:
    """``images`` and ``masks``, with ``train`` and ``test`` in them where `split`."""
    for number in range(count):
        picture, mask = pair(number, values or [0, 1, 2])
        inner = Path(("train", "test")[number % 2]) if split else Path()
        write(root / "images" / inner / f"{number}.jpg", root / "masks" / inner / f"{number}.png", picture, mask)
    return root
