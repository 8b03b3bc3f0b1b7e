"""MobileNetV2 with its ImageNet weights: what INT8 costs by observer and runtime. Writes its section of docs/figures/int8.md.

    python bench/mobilenet_v2.py --weights mobilenet_v2-b0353104.pth --pictures FOLDER            # once; makes NET.onnx and samples
    python bench/mobilenet_v2.py                                                                  # errors; load does not matter
    pydeploy choose-precision build/mobilenet/net.onnx --data build/mobilenet/calib.yaml --target onnxruntime --threads 2 \\
        --observer moving_average --limit 3 --out build/mobilenet/precisions                      # on a quiet machine
    python bench/mobilenet_v2.py --engines build/mobilenet/precisions                             # the same with what that made

The weights are torchvision's. The folder holds one picture for each class, named ``CLASS_....jpg`` with the class's number;
256 drawn by a seed calibrate, the others judge.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydeploy.backends.base import open_backend
from pydeploy.backends.device import cpu
from pydeploy.files import write_text
from pydeploy.quant.calibrate import calibrate
from pydeploy.quant.qdq import quantize

CALIBRATION, SEED = 256, 0
OBSERVERS = ("mse", "moving_average", "percentile", "entropy")
RUNTIMES = ("onnxruntime", "openvino")
BEGIN, END = "<!-- mobilenet_v2: begin -->", "<!-- mobilenet_v2: end -->"
ABOUT = """\
torchvision's weights; one picture for each ImageNet class, {calib} of them to calibrate, {n} others to judge by, {right} of which the float
network names rightly. The pictures may have been trained on, so only differences count, and one answer is {answer:.2f} points. Weights of
8 bits, biases corrected. 'Change' is in points of top-1, 'as float' the share of equal answers, 'error' that of the logits, relative."""


def make(weights: Path, pictures: Path, work: Path) -> None:
    """``net.onnx``, ``samples.npz`` and the manifest ``calib.yaml``."""
    import torch
    from PIL import Image
    from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

    from pydeploy.export import export

    model = mobilenet_v2()
    model.load_state_dict(torch.load(weights, weights_only=True))
    export(model.eval(), torch.zeros(1, 3, 224, 224), work / "net.onnx")
    prepared = MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    files = sorted(pictures.glob("*.jpg"))
    images = np.stack([prepared(Image.open(file).convert("RGB")).numpy() for file in files])
    labels = np.array([int(file.name.split("_")[0]) for file in files])
    order = np.random.default_rng(SEED).permutation(len(files))
    calib, test = order[:CALIBRATION], order[CALIBRATION:]
    np.savez(work / "samples.npz", calib=images[calib], test=images[test], labels=labels[test])
    np.save(work / "calib.npy", images[calib])
    write_text(work / "calib.yaml", f"source: ./calib.npy\ncount: {CALIBRATION}\n")


def answers(runtime: str, precision: str, path: Path, images: NDArray[np.float32]) -> NDArray[np.float64]:
    """Logits of the engine that is built from a file."""
    backend = open_backend(runtime, precision=precision, threads=1)
    with backend.open(backend.build(path, path.with_suffix(".engine"))) as session:
        (spec,) = session.inputs
        return np.concatenate(
            [next(iter(session.run({spec.name: image[None]}).values())).astype(np.float64) for image in images]
        )


def rows(work: Path, samples: Any, wanted: NDArray[np.float64]) -> Iterator[str]:
    """One line for each observer and runtime."""
    net = work / "net.onnx"
    with open_backend("onnxruntime", threads=1).open(
        open_backend("onnxruntime", threads=1).build(net, work / "float.engine")
    ) as session:
        name = session.inputs[0].name
    for observer in OBSERVERS:
        ranges = calibrate(net, [{name: samples["calib"]}], observer=observer, threads=1, resume=work / "counts.json")
        for runtime in RUNTIMES:
            out = work / f"{observer}.{runtime}.onnx"
            quantize(net, ranges, out, style=runtime)
            yield row(
                f"INT8, `{observer}`",
                runtime,
                answers(runtime, "int8", out, samples["test"]),
                wanted,
                samples["labels"],
            )


def row(
    name: str, runtime: str, found: NDArray[np.float64], wanted: NDArray[np.float64], labels: NDArray[np.int64]
) -> str:
    right, before = (int((logits.argmax(1) == labels).sum()) for logits in (found, wanted))
    same = float((found.argmax(1) == wanted.argmax(1)).mean())
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    text = f"| {name} | {runtime} | {right} | {100 * (right - before) / len(labels):+.2f} | {same:.2%} | {error:.4f} |"
    print(text, flush=True)
    return text


def chosen(folder: Path, samples: Any, wanted: NDArray[np.float64]) -> Iterator[str]:
    """Lines for the engines of `pydeploy choose-precision`, with the latencies that it measured."""
    found = json.loads((folder / "precisions.json").read_text())
    for name in ("int8", "mixed"):
        if (path := folder / f"{name}.onnx").is_file():
            yield row(f"`choose-precision`, {name}", "onnxruntime", answers("onnxruntime", "int8", path, samples["test"]),
                      wanted, samples["labels"])  # fmt: skip
    print(json.dumps(found, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/mobilenet"))
    parser.add_argument("--engines", type=Path, help="folder of pydeploy choose-precision, to be judged as well")
    parser.add_argument("--out", type=Path, default=Path("docs/figures/int8.md"))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.weights is not None:
        make(given.weights, given.pictures, given.work)
        return
    samples = dict(np.load(given.work / "samples.npz"))
    if not (kept := given.work / "float.npy").is_file():
        np.save(kept, answers("onnxruntime", "fp32", given.work / "net.onnx", samples["test"]))
    wanted, labels, device = np.load(kept), samples["labels"], cpu()
    table = list(rows(given.work, samples, wanted))
    table += chosen(given.engines, samples, wanted) if given.engines is not None else ()
    right = int((wanted.argmax(1) == labels).sum())
    about = ABOUT.format(
        calib=len(samples["calib"]),
        n=len(labels),
        right=right,
        answer=100 / len(labels),
    )
    head = (
        f"Written by `python bench/mobilenet_v2.py` on {device.name} ({device.facts['instruction_sets']}); do not edit."
    )
    lines = ["## MobileNetV2 with its ImageNet weights", "", head, "", about, "",
             "| engine | runtime | right | change | as float | error |", "|---|---|---|---|---|---|", *table, ""]  # fmt: skip
    before, _, rest = given.out.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    write_text(given.out, "\n".join([before.rstrip(), "", BEGIN, "", *lines, END]) + "\n" + after.lstrip("\n"))


if __name__ == "__main__":
    main()
