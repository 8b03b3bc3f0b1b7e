"""How often `engine_benchmark` is right: ``python bench/latency_regression.py [--busy N] [--repeats 20]``.

A run of one engine is saved. Then the same engine and one with ten per cent more work are compared with it in turns, each
comparison a pytest session of its own with ``--benchmark-compare-fail=median:5%``, while `--busy` processes of matrix
products want the same cores. Prints how often each was passed and failed, and on what machine.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pydeploy.backends.base import open_backend
from pydeploy.backends.device import cpu

WIDTH, SIZE = 64, 28
LAYERS, SLOWER = 20, 22
TEST = "def test_latency(engine_benchmark):\n    engine_benchmark('model.engine')\n"
LOAD = "import numpy as np\na = np.random.default_rng(0).random((700, 700), np.float32)\nwhile True: a @ a\n"


def chain(path: Path, layers: int) -> Path:
    random, nodes, weights, value = np.random.default_rng(0), [], [], "image"
    for index in range(layers):
        kernel = (random.standard_normal((WIDTH, WIDTH, 3, 3)) * np.sqrt(2 / 9 / WIDTH)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"w{index}"))
        nodes += [helper.make_node("Conv", [value, f"w{index}"], [f"c{index}"], f"c{index}", pads=[1, 1, 1, 1]),
                  helper.make_node("Relu", [f"c{index}"], [f"r{index}"], f"r{index}")]  # fmt: skip
        value = f"r{index}"
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, WIDTH, SIZE, SIZE]) for n in ("image", value)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def passes(folder: Path, *options: str) -> tuple[bool, str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "test_latency.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    text = done.stdout + done.stderr
    if done.returncode and "Performance has regressed" not in text:
        raise SystemExit(f"the session itself failed:\n{text}")
    line = next((line.strip() for line in text.splitlines() if "Field 'median'" in line), "")
    return done.returncode == 0, line


def use(folder: Path, name: str) -> None:
    for end in ("", ".json"):
        shutil.copy(folder / name / f"model.engine{end}", folder)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--busy", type=int, default=0)
    options.add_argument("--repeats", type=int, default=20)
    options.add_argument("--target", default="onnxruntime:fp32")
    given = options.parse_args()
    name, _, precision = given.target.partition(":")
    backend = open_backend(name, precision=precision)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "test_latency.py").write_text(TEST)
        for which, layers in (("same", LAYERS), ("slow", SLOWER)):
            (folder / which).mkdir()
            backend.build(chain(folder / f"{which}.onnx", layers), folder / which / "model.engine")
        use(folder, "same")
        print(
            f"{backend.target()}, load {os.getloadavg()[0]:.1f} before, {given.busy} busy processes added after saving"
        )
        assert passes(folder, "--benchmark-autosave")[0]
        load = [
            subprocess.Popen([sys.executable, "-c", LOAD], env={**os.environ, "OMP_NUM_THREADS": "1"})
            for _ in range(given.busy)
        ]
        counts = {"same": 0, "slow": 0}
        try:
            for repeat in range(given.repeats):
                for which in counts:
                    use(folder, which)
                    passed, line = passes(folder, "--benchmark-compare", "--benchmark-compare-fail=median:5%")
                    counts[which] += passed
                    print(f"{repeat + 1}: {which} {'passes' if passed else 'fails'} {line}", flush=True)
        finally:
            for process in load:
                process.kill()
                process.wait()
        print(f"the same engine passes {counts['same']} of {given.repeats}, the engine with {SLOWER / LAYERS - 1:.0%} more work "
              f"fails {given.repeats - counts['slow']} of {given.repeats}; load {os.getloadavg()[0]:.1f} after, {cpu().name}")  # fmt: skip


if __name__ == "__main__":
    main()
