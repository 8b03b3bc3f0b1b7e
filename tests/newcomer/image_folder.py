"""A folder of pictures and a network of torchvision: fine-tuned, cut to 60 % of its latency, INT8, a report; all from one config."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

CONFIG = """\
task:
  name: classification
  data: folder
  options: {root: pictures, size: 32, workers: 0}
model: {name: torchvision:resnet18}
train: {epochs: 2, batch_size: 32, lr: 0.02}
target: {backend: onnxruntime, precision: fp32, threads: 1}
table: {points: 2, align: 64, rounds: 3, runs: 3}
prune: {criterion: taylor, batches: 1, batch_size: 64, budget: 0.6}
finetune: {epochs: 1, batch_size: 32, lr: 0.01}
quantize: {calibration: samples.yaml}
"""
SAMPLES = """\
source: ./pictures/train
count: 32
preprocessing: {mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], resize: 36, crop: 32}
"""


def pictures(top: Path) -> None:
    """Stripes of three directions, whatever their colours."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:40, :48]
    for split, count in (("train", 48), ("val", 16)):
        for name, across in (("flat", y), ("steep", x), ("slanted", x + y)):
            (top / split / name).mkdir(parents=True)
            for index in range(count):
                wave = np.sin(across * random.uniform(0.5, 0.9) + random.uniform(0, 6))
                pixels = 128 + wave[..., None] * random.uniform(30, 110, 3) + random.normal(0, 12, (40, 48, 3))
                Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(top / split / name / f"{index}.jpg")


def main() -> None:
    pictures(Path("pictures"))
    Path("job.yaml").write_text(CONFIG)
    Path("samples.yaml").write_text(SAMPLES)
    assert len(CONFIG.splitlines()) <= 20
    subprocess.run([sys.executable, "-m", "pydeploy", "run", "job.yaml", "--out", "out"], check=True)
    report = json.loads(Path("out/report.json").read_text())
    found = {name: (model["value"], model["precision"]) for name, model in report["models"].items() if model}
    print(f"met: {report['met']}; {found}")
    assert {"dense", "pruned", "quantized"} <= set(found)
    assert found["quantized"][1] == "int8"
    assert Path("out/report.html").stat().st_size > 10_000
    engine = Path("out/09_quantized")
    assert (engine / "model.engine").is_file()
    assert json.loads((engine / "preprocessing.json").read_text())


if __name__ == "__main__":
    main()
