"""Drawn cloth as a data set."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pydeploy.data.canvas_textures import Woven
from pydeploy.data.defect_masks import Mask
from pydeploy.data.defect_set import DefectSet, DefectSplit, Size, fixed_size, supervised


def canvas(size: Size = 128, train_size: int = 600, test_size: int = 300, defective: float = 0.3,
          supervision: float | str = 1.0, seed: int = 0) -> DefectSet:  # fmt: skip
    """Drawn cloth (`Woven`) with scratches, spots and holes: grey pictures of `size` with masks. Needs no files."""
    way = fixed_size(size, 1, (0.5,), (0.2,), "bilinear")
    assert isinstance(way.resize, tuple)
    drawn = Woven(way.resize, train_size, test_size, defective, seed)
    train, test = (_pieces(drawn, part) for part in ("train", "test"))
    return DefectSet("canvas", supervised(train, supervision, seed), test, way)


@dataclass(frozen=True)
class _Pieces:
    """Pictures and masks of one split of drawn cloth, each drawn once."""

    drawn: Woven
    part: str
    kept: dict[int, tuple[NDArray[np.uint8], Mask]] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return self.drawn.count(self.part)

    def piece(self, index: int) -> tuple[NDArray[np.uint8], Mask]:
        if index not in self.kept:
            self.kept[index] = self.drawn.piece(self.part, index)
        return self.kept[index]

    def read(self, index: int) -> NDArray[np.uint8]:
        return self.piece(index)[0]

    def fingerprint(self, index: int) -> bytes:
        return f"{self.drawn.digest()} {self.part} {index}".encode()


@dataclass(frozen=True)
class _PieceMasks:
    pieces: _Pieces

    def read(self, index: int) -> Mask | None:
        return self.pieces.piece(index)[1]

    def fingerprint(self, index: int) -> bytes:
        return self.pieces.fingerprint(index)


def _pieces(drawn: Woven, part: str) -> DefectSplit:
    pieces, defective = _Pieces(drawn, part), drawn.damaged(part)
    names = [f"{index:05}" for index in range(len(pieces))]
    return DefectSplit(names, pieces, defective, _PieceMasks(pieces), np.ones(len(pieces), np.bool_))
