"""An ONNX file and pictures, no PyTorch: the fastest engine within a limit, in one verb."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

MANIFEST = "source: ./pictures\ncount: 64\npreprocessing: {mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25], crop: 32}\n"


def network(path: Path) -> None:
    """Four convolutions, a mean and a linear layer, as somebody else exported them."""
    random, nodes, weights, value, channels = np.random.default_rng(0), [], [], "image", 3
    for index, width in enumerate((64, 64, 128, 128)):
        kernel = random.standard_normal((width, channels, 3, 3)).astype(np.float32) * np.sqrt(2 / 9 / channels)
        weights.append(numpy_helper.from_array(kernel.astype(np.float32), f"w{index}"))
        nodes += [helper.make_node("Conv", [value, f"w{index}"], [f"c{index}"], pads=[1, 1, 1, 1]),
                  helper.make_node("Relu", [f"c{index}"], [f"r{index}"])]  # fmt: skip
        value, channels = f"r{index}", width
    weights.append(numpy_helper.from_array(random.standard_normal((channels, 10)).astype(np.float32), "fc"))
    nodes += [helper.make_node("GlobalAveragePool", [value], ["mean"]), helper.make_node("Flatten", ["mean"], ["flat"]),
              helper.make_node("MatMul", ["flat", "fc"], ["logits"])]  # fmt: skip
    ends = [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 32, 32]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])]  # fmt: skip
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)


def main() -> None:
    assert importlib.util.find_spec("torch") is None, "this job is for an environment without PyTorch"
    network(Path("model.onnx"))
    Path("pictures").mkdir()
    random = np.random.default_rng(1)
    for index in range(64):
        coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8))
        coarse.resize((40, 36), Image.Resampling.BICUBIC).save(Path("pictures") / f"{index}.jpg")
    Path("calib.yaml").write_text(MANIFEST)
    command = [
        "choose-precision",
        "model.onnx",
        "--data",
        "calib.yaml",
        "--target",
        "onnxruntime",
        "--limit",
        "10",
        "--out",
        "out",
    ]
    done = subprocess.run([sys.executable, "-m", "pydeploy", *command], check=False)
    assert done.returncode in (0, 1), done.returncode  # 1: float is the fastest here
    found = json.loads(Path("out/precisions.json").read_text())
    print(f"recommended: {found['recommended']}")
    assert Path("out/precisions.md").is_file()
    run = [sys.executable, "-m", "pydeploy", "profile", next(map(str, Path("out").glob("*.engine")))]
    subprocess.run(run, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
