"""MobileNetV2 with its ImageNet weights as ``NET.onnx`` and ``NET.npz``, which `bench/int8_accuracy.py` reads; and its engines.

    python bench/mobilenet_v2.py --weights mobilenet_v2-b0353104.pth --pictures FOLDER --out build/accuracy/mobilenet_v2.onnx
    python bench/int8_accuracy.py --net build/accuracy/mobilenet_v2.onnx                      # INT8 by observer and instruction set
    pydeploy choose-precision build/accuracy/mobilenet_v2.onnx --data build/accuracy/mobilenet_v2.yaml \\
        --target onnxruntime --limit 2 --threads 2 --out build/accuracy/precisions            # float, INT8 and mixed, timed in turns

The weights are torchvision's. The folder holds one picture for each class, named ``CLASS_....jpg`` with the class's number;
256 drawn by a seed calibrate, the others judge.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

from pydeploy.export import export
from pydeploy.files import write_text

CALIBRATION, SEED = 256, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("build/accuracy/mobilenet_v2.onnx"))
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    model = mobilenet_v2()
    model.load_state_dict(torch.load(given.weights, weights_only=True))
    export(model.eval(), torch.zeros(1, 3, 224, 224), given.out)
    prepared = MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    files = sorted(given.pictures.glob("*.jpg"))
    images = np.stack([prepared(Image.open(file).convert("RGB")).numpy() for file in files])
    labels = np.array([int(file.name.split("_")[0]) for file in files])
    order = np.random.default_rng(SEED).permutation(len(files))
    calib, test = order[:CALIBRATION], order[CALIBRATION:]
    np.savez(given.out.with_suffix(".npz"), calib=images[calib], test=images[test], labels=labels[test])
    np.save(given.out.with_suffix(".calib.npy"), images)  # choose-precision judges by every fourth batch of these
    write_text(given.out.with_suffix(".yaml"), f"source: ./{given.out.stem}.calib.npy\ncount: {len(images)}\n")
    print(f"{given.out}: {len(calib)} pictures calibrate, {len(test)} judge")


if __name__ == "__main__":
    main()
