"""Trained weights in half precision, as they lie in configs/weights: ``python bench/demo_weights.py MODEL.safetensors``.

Prints how many test pictures the network answers rightly with the weights as they are and with half of their bits.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from pydeploy.files import replacing
from pydeploy.models import build
from pydeploy.models.weights import filled
from pydeploy.tasks.named import build_task

OUT = Path(__file__).resolve().parent.parent / "configs" / "weights" / "fashion_mnist_resnet20.safetensors"


def halved(source: Path, out: Path) -> None:
    """A state dict of the tensors of `source`, float32 as float16."""
    tensors = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in load_file(source).items()
    }
    with tempfile.TemporaryDirectory() as folder, replacing(out) as partial:
        save_file(tensors, Path(folder) / "weights", {"format": "pt", "made_by": "make weights"})
        partial.write_bytes((Path(folder) / "weights").read_bytes())


def right(path: Path) -> float:
    """Share of the 10,000 test pictures that are answered rightly."""
    model, _ = filled(build("resnet20", in_channels=1, width=32), path)
    task, found = build_task("classification", data="fashion_mnist"), 0
    with torch.inference_mode():
        for chosen in np.array_split(np.arange(task.size("test")), 20):
            batch = task.samples("test", chosen)
            found += int((model.eval()(*batch.inputs).argmax(1) == batch.target).sum())
    return found / task.size("test")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    halved(given.model, given.out)
    print(f"{given.out}: {given.out.stat().st_size / 1e6:.2f} MB; test accuracy {right(given.model):.2%} as trained, "
          f"{right(given.out):.2%} in half precision")  # fmt: skip


if __name__ == "__main__":
    main()
