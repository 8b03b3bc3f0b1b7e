"""How often `engine_benchmark` is right: ``python bench/latency_regression.py [--busy N] [--repeats 20] [--out docs/howto/ci.md]``.

A run of one engine is saved. Then the same engine and one with ten per cent more work are compared with it in turns, each
comparison a pytest session of its own with ``--benchmark-compare-fail=median:5%``, while `--busy` processes of matrix
products want the same cores. Prints how often each passed, failed and was left open, and on what machine; with `--out`, the
rates become a row of the page's table.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pydeploy.backends.base import open_backend
from pydeploy.backends.device import cpu
from pydeploy.files import write_text

WIDTH, SIZE = 64, 28
LAYERS, SLOWER = 20, 22
TEST = "def test_latency(engine_benchmark):\n    engine_benchmark('model.engine')\n"
END = "<!-- latency_regression: end -->"
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


def outcome(folder: Path, *options: str) -> tuple[str, str]:
    """Whether a session 'passes', 'fails' or is left 'open', and what it says of that."""
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *options, "test_latency.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    text = done.stdout + done.stderr
    if done.returncode and "Performance has regressed" not in text:
        raise SystemExit(f"the session itself failed:\n{text}")
    lines = [line.strip() for line in text.splitlines() if "Field 'median'" in line or "cannot tell" in line]
    found = "fails" if done.returncode else "open" if "cannot tell" in text else "passes"
    return found, " ".join(lines[:1])


def use(folder: Path, name: str) -> None:
    for end in ("", ".json"):
        shutil.copy(folder / name / f"model.engine{end}", folder)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--busy", type=int, default=0)
    options.add_argument("--repeats", type=int, default=20)
    options.add_argument("--target", default="onnxruntime:fp32")
    options.add_argument("--out", type=Path, help="page whose table gets the rates")
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
        load_before = os.getloadavg()[0]
        outcome(folder, "--benchmark-autosave")
        load = [
            subprocess.Popen([sys.executable, "-c", LOAD], env={**os.environ, "OMP_NUM_THREADS": "1"})
            for _ in range(given.busy)
        ]
        counts: dict[str, Counter[str]] = {"same": Counter(), "slow": Counter()}
        try:
            for repeat in range(given.repeats):
                for which in counts:
                    use(folder, which)
                    found, line = outcome(folder, "--benchmark-compare", "--benchmark-compare-fail=median:5%")
                    counts[which][found] += 1
                    print(f"{repeat + 1}: {which} {found} {line}", flush=True)
        finally:
            for process in load:
                process.kill()
                process.wait()
        row = (f"| {cpu().name}, {os.cpu_count()} cores | {load_before:.0f} to {os.getloadavg()[0]:.0f}, {given.busy} of them ours | "
               f"{rates(counts['same'])} | {rates(counts['slow'])} | {given.repeats} |")  # fmt: skip
        print(
            f"same engine: {rates(counts['same'])}; {SLOWER / LAYERS - 1:.0%} more work: {rates(counts['slow'])}",
            row,
            sep="\n",
        )
        if given.out is not None:
            head, end, rest = given.out.read_text(encoding="utf-8").partition(END)
            write_text(given.out, f"{head}{row}\n{end}{rest}")


def rates(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[key]} {key}" for key in ("passes", "fails", "open"))


if __name__ == "__main__":
    main()
