"""Training batches of a folder of pictures against a plain DataLoader with the same transforms; both must see the same pictures.

On pictures made here, JPEG of 320 x 240; ``PYDEPLOY_PICTURES`` names a folder of ``CLASS/*.jpg`` to use instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from pydeploy.data.preprocessing import IMAGENET
from pydeploy.tasks.named import build_task

SIZE, BATCH, WORKERS, COUNT = 224, 32, 2, 256


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if given := os.environ.get("PYDEPLOY_PICTURES"):
        return Path(given)
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for index in range(COUNT):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8)).resize(
            (320, 240), Image.Resampling.BICUBIC
        )
        place = folder / f"class{index % 4}" / f"{index:04}.jpg"
        place.parent.mkdir(exist_ok=True)
        coarse.save(place, quality=85)
    return folder


def plain(top: Path) -> Callable[[], Iterator[torch.Tensor]]:
    """As torchvision's own training reference does it, from the shorter side on; its processes stay, as ours do."""
    steps = v2.Compose([v2.PILToTensor(), v2.Resize(256, antialias=True), v2.RandomResizedCrop(SIZE, (0.35, 1.0), antialias=True),
                        v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True),
                        v2.Normalize(IMAGENET.mean, IMAGENET.std)])  # fmt: skip
    pictures = ImageFolder(str(top), steps)
    loader = DataLoader(pictures, BATCH, shuffle=True, drop_last=True, num_workers=WORKERS, persistent_workers=True)
    return lambda: (images for images, _ in loader)


def ours(top: Path) -> Callable[[], Iterator[torch.Tensor]]:
    task = build_task(
        "classification", data="folder", root=str(top), size=SIZE, resize=256, workers=WORKERS, holdout=0.001
    )
    return lambda: (batch.inputs[0] for batch in task.train_batches(0, BATCH, 0))


def seen(batches: Iterator[torch.Tensor]) -> tuple[int, torch.Tensor]:
    """How many samples there were, and their mean colour."""
    count, total = 0, torch.zeros(3)
    for images in batches:
        assert images.shape[1:] == (3, SIZE, SIZE)
        count, total = count + len(images), total + images.mean(dim=(0, 2, 3)) * len(images)
    return count, total / max(count, 1)


@pytest.mark.benchmark(group="loader")
@pytest.mark.parametrize("which", ["plain DataLoader", "pydeploy"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_epoch(benchmark: Callable[..., tuple[int, torch.Tensor]], top: Path, which: str) -> None:
    run = plain(top) if which.startswith("plain") else ours(top)
    reference = seen(plain(top)())
    count, colour = benchmark(lambda: seen(run()))
    assert abs(count - reference[0]) <= BATCH
    torch.testing.assert_close(colour, reference[1], atol=0.1, rtol=0)


def test_memory_does_not_grow_with_what_is_read(top: Path) -> None:
    """Resident memory of this process after one epoch and after three more; of its own memory, not of files."""
    epoch = ours(top)
    seen(epoch())
    before = own_mb()
    for _ in range(3):
        seen(epoch())
    assert own_mb() - before < 32


def own_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024
