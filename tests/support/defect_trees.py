"""Small data sets of pictures with defects, in the layouts of the real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from pydeploy.data.canvas_textures import Woven

PIECES = Woven((64, 32), 16, 8, 0.5)


def piece(number: int, *, defective: bool) -> tuple[np.ndarray, np.ndarray]:
    """A grey picture ``(64, 32)`` and its mask."""
    of_kind = np.flatnonzero(PIECES.damaged("train") == defective)
    picture, mask = PIECES.piece("train", int(of_kind[number % len(of_kind)]))
    return picture[:, :, 0], mask


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def ksdd2_tree(root: Path, train: int = 8, test: int = 6) -> Path:
    """KSDD2's layout; every second picture is defective, one is of 16 bits and one in colour."""
    for part, count in (("train", train), ("test", test)):
        for number in range(count):
            picture, mask = piece(number // 2, defective=number % 2 == 0)
            made = (
                picture.astype(np.uint16) * 257
                if number == 2
                else np.stack([picture] * 3, 2)
                if number == 3
                else picture
            )
            write(root / part / f"{10000 + number}.png", made)
            write(root / part / f"{10000 + number}_GT.png", (mask * 255).astype(np.uint8))
    return root


def tiles_tree(root: Path, each: int = 4) -> Path:
    """The magnetic tiles' layout with three of its kinds; masks of one bit, pictures of different sizes."""
    for kind in ("MT_Blowhole", "MT_Crack", "MT_Free"):
        for number in range(each):
            picture, mask = piece(number, defective=kind != "MT_Free")
            cut = slice(0, 64 - number)
            write(root / kind / f"exp1_num_{number}.jpg", picture[cut])
            write(root / kind / f"exp1_num_{number}.png", mask[cut])
    return root


def elpv_tree(root: Path, each: int = 4) -> Path:
    """ELPV's layout: two kinds of cells, four probabilities."""
    lines = []
    for number, probability in enumerate(("0.0", "0.3333333333333333", "0.6666666666666666", "1.0") * each):
        name, kind = f"images/cell{number:04}.png", ("mono", "poly")[number // 4 % 2]
        write(root / name, piece(number, defective=probability > "0.5")[0])
        lines.append(f"{name}  {probability:<20} {kind}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root
