"""INT8 accuracy and error by instruction set. Writes its section of docs/figures/int8.md.

    python bench/int8_accuracy.py --work build/accuracy                          # ResNet-8, trained here on Fashion-MNIST
    python bench/int8_accuracy.py --work build/accuracy --net mobilenet_v2.onnx  # and a file of yours

Beside a file of yours lies ``mobilenet_v2.npz`` with the arrays `calib` and `test` (images as the network reads them) and
`labels` of the test images. OpenVINO is held back by ``ONEDNN_MAX_CPU_ISA``, in processes of their own. ONNX Runtime cannot
be: where ``qemu-x86_64`` (QEMU, user mode) is installed, it runs on an emulated processor, whose AVX2 is its best.
Every measurement leaves a JSON file in the work folder and is not repeated.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from pydeploy.backends.base import open_backend
from pydeploy.backends.device import cpu, onednn_cap
from pydeploy.files import read_json, write_json, write_text
from pydeploy.onnxfile.execute import as_written
from pydeploy.quant.calibrate import calibrate
from pydeploy.quant.observe import Ranges
from pydeploy.quant.qdq import quantize
from pydeploy.quant.styles import processor

CAPS = ("AVX2", "AVX512_CORE", "AVX512_CORE_VNNI", "AVX512_CORE_BF16", "")
EMULATED = ("qemu-x86_64", "-cpu", "max")
BELOW_VNNI, VNNI = "avx2 avx512f", "avx2 avx512f avx512_vnni"
"""Processors to quantize for: weights of 7 bits, and of 8."""
TRAIN, CALIBRATION, BATCH, SEED = 20_000, 256, 64, 0
OTHERS = ("entropy", "percentile", "moving_average")
"""Observers beside `mse`."""
BEGIN, END = "<!-- int8_accuracy: begin -->", "<!-- int8_accuracy: end -->"
Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def trained(work: Path) -> Path:
    """ResNet-8 of the zoo after one epoch on the first `TRAIN` training images, and its samples."""
    import torch
    from torch.nn import functional

    from pydeploy.data.image_sets import fashion_mnist
    from pydeploy.export import export
    from pydeploy.models import build

    path, data = work / "resnet8.onnx", fashion_mnist()
    if path.is_file():
        return path
    torch.manual_seed(SEED)
    model = build("resnet8", in_channels=1).train()
    images = torch.from_numpy(data.normalize(data.train_images[:TRAIN]))
    labels = torch.from_numpy(data.train_labels[:TRAIN])
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=-(-TRAIN // BATCH))
    for chosen in torch.randperm(TRAIN).split(BATCH):
        optimizer.zero_grad()
        functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
        schedule.step()
    calib = data.normalize(data.train_images[TRAIN : TRAIN + CALIBRATION])
    np.savez(path.with_suffix(".npz"), calib=calib, test=data.normalize(data.test_images), labels=data.test_labels)
    export(model.eval(), torch.zeros(1, *images.shape[1:]), path)
    return path


def logits(run: Run, images: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.concatenate([run(image[None]).astype(np.float64) for image in images])


def compare(found: NDArray[np.float64], net: Path) -> dict[str, Any]:
    """Right answers, answers as the float file's, and the relative error of the logits."""
    wanted, labels = np.load(net.with_suffix(".float.npy"))[: len(found)], np.load(net.with_suffix(".npz"))["labels"]
    answers = found.argmax(1)
    return {"right": int((answers == labels[: len(found)]).sum()), "same": int((answers == wanted.argmax(1)).sum()),
            "n": len(found), "error": float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))}  # fmt: skip


def on_onnxruntime(path: Path) -> Run:
    """ONNX Runtime as it comes: integer layers by the kernels of this processor."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def input_name(net: Path) -> str:
    return str(as_written(net).get_inputs()[0].name)


def quantized(net: Path, style: str) -> None:
    """``NET.STYLE.7.onnx`` and ``NET.STYLE.8.onnx``: for processors below VNNI, and for those with it."""
    samples = np.load(net.with_suffix(".npz"))["calib"]
    place = net.with_suffix(f".{style}.ranges.json")
    if not place.is_file():
        calibrate(net, [{input_name(net): samples}], style=style, threads=1).save(place)
    for bits, sets in ((7, BELOW_VNNI), (8, VNNI)):
        target = processor(style, sets)
        quantize(net, Ranges.load(place), net.with_suffix(f".{style}.{bits}.onnx"), style=style, target=target)


def engine_of(net: Path, source: Path, runtime: str) -> dict[str, Any]:
    """What the engine of one quantized file answers."""
    backend = open_backend(runtime, precision="int8", threads=1)
    out = source.with_suffix(f".{onednn_cap() or 'all'}.engine")
    with backend.open(backend.build(source, out)) as session:
        (spec,) = session.inputs
        images = np.load(net.with_suffix(".npz"))["test"]
        return compare(logits(lambda x: next(iter(session.run({spec.name: x}).values())).copy(), images), net)


def bits_of(runtime: str) -> int:
    """What `quantize` gives weights for this processor."""
    return 7 if open_backend(runtime, precision="int8", threads=1).target().saturates else 8


def engines(net: Path, runtime: str) -> dict[str, Any]:
    """Engines of both files on this processor, or as much of it as ``ONEDNN_MAX_CPU_ISA`` leaves."""
    own = bits_of(runtime)
    files = {str(bits): net.with_suffix(f".{runtime}.{bits}.onnx") for bits in range(own, 9)}
    return {"bits": own, **{bits: engine_of(net, path, runtime) for bits, path in files.items()}}


def of_observer(net: Path, observer: str) -> dict[str, Any]:
    """OpenVINO's engine with ranges of another observer."""
    name, out = input_name(net), net.with_suffix(f".{observer}.onnx")
    samples = np.load(net.with_suffix(".npz"))["calib"]
    quantize(
        net, calibrate(net, [{name: samples}], observer=observer, style="openvino", threads=1), out, style="openvino"
    )
    bits = bits_of("openvino")
    return {"bits": bits, str(bits): engine_of(net, out, "openvino")}


def of_nncf(net: Path) -> dict[str, Any]:
    """``nncf.quantize`` with its defaults on the same images, on OpenVINO."""
    import nncf
    import openvino as ov

    core, data = ov.Core(), np.load(net.with_suffix(".npz"))
    calib, model = data["calib"], core.read_model(net)
    name = model.inputs[0].get_any_name()
    model = nncf.quantize(model, nncf.Dataset([{name: image[None]} for image in calib]), subset_size=len(calib))
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    return {"bits": 8, "8": compare(logits(lambda x: compiled({name: x})[0].copy(), data["test"]), net)}


def emulated(net: Path, count: int) -> dict[str, Any]:
    """Both files on ONNX Runtime alone; called on the emulated processor, which this process takes for its own."""
    images = np.load(net.with_suffix(".npz"))["test"][:count]
    files = {str(bits): net.with_suffix(f".onnxruntime.{bits}.onnx") for bits in (7, 8)}
    return {"bits": 7, **{bits: compare(logits(on_onnxruntime(path), images), net) for bits, path in files.items()}}


def alone(net: Path, runtime: str, count: int) -> dict[str, Any]:
    """One measurement in this process."""
    if runtime == "emulated":
        return emulated(net, count)
    if runtime in OTHERS:
        return of_observer(net, runtime)
    return of_nncf(net) if runtime == "nncf" else engines(net, runtime)


def apart(place: Path, command: Sequence[str], cap: str = "") -> dict[str, Any]:
    """What a process of its own measures; kept in `place`."""
    if not place.is_file():
        env = {**os.environ, **({"ONEDNN_MAX_CPU_ISA": cap} if cap else {})}
        ran = subprocess.run([*command], check=True, env=env, stdout=subprocess.PIPE)
        write_json(place, json.loads(ran.stdout.splitlines()[-1]))
        sys.stderr.write(f"{place.name}: {place.read_text()}\n")
    return dict(read_json(place))


def measured(net: Path, count: int) -> list[tuple[str, str, dict[str, Any]]]:
    """(runtime, instruction sets, engines by bits of weights) of one network."""
    if not (kept := net.with_suffix(".float.npy")).is_file():
        np.save(kept, logits(on_onnxruntime(net), np.load(net.with_suffix(".npz"))["test"]))
    for style in ("onnxruntime", "openvino"):
        if not net.with_suffix(f".{style}.8.onnx").is_file():
            quantized(net, style)
    python, own = sys.executable, [str(Path(__file__).resolve()), "--one", str(net)]
    rows = []
    command = [python, *own, "--runtime", "onnxruntime"]
    rows.append(("ONNX Runtime", "all", apart(net.with_suffix(".onnxruntime.json"), command)))
    for cap in CAPS:
        command = [python, *own, "--runtime", "openvino"]
        rows.append(("OpenVINO", cap or "all", apart(net.with_suffix(f".openvino.{cap}.json"), command, cap)))
    for observer in OTHERS:
        found = apart(net.with_suffix(f".{observer}.json"), [python, *own, "--runtime", observer])
        rows.append((f"OpenVINO, observer `{observer}`", "all", found))
    if importlib.util.find_spec("nncf") is not None:
        rows.append(
            ("OpenVINO, by NNCF", "all", apart(net.with_suffix(".nncf.json"), [python, *own, "--runtime", "nncf"]))
        )
    if shutil.which(EMULATED[0]):  # the slowest
        command = [*EMULATED, python, *own, "--runtime", "emulated", "--count", str(count)]
        rows.insert(0, ("ONNX Runtime", "AVX2 (emulated)", apart(net.with_suffix(".emulated.json"), command)))
    return rows


def table(net: Path, rows: Sequence[tuple[str, str, dict[str, Any]]]) -> list[str]:
    """One network."""
    base = compare(np.load(net.with_suffix(".float.npy")), net)
    data = np.load(net.with_suffix(".npz"))
    size = "x".join(map(str, data["test"].shape[1:]))
    about = (
        f"{base['right']} of {base['n']} images of {size} right in float32; calibrated on {len(data['calib'])} others."
    )
    lines = [f"### {net.stem}", "", about, "",
             "| runtime | instruction sets | weights | right | as float32 | error |", "|---|---|---|---|---|---|"]  # fmt: skip
    for runtime, sets, found in rows:
        for bits in sorted(key for key in found if key != "bits"):
            one = found[bits]
            what = f"{bits} bits" + ("" if int(bits) == found["bits"] else ", not made for it")
            lines.append(f"| {runtime} | {sets} | {what} | {one['right']}/{one['n']} | {one['same']}/{one['n']} | "
                         f"{one['error']:.4f} |")  # fmt: skip
    return [*lines, ""]


def page(tables: Sequence[str], command: str) -> list[str]:
    """The section."""
    device = cpu()
    about = (
        "Right answers and answers as float32's, of n test images; relative error of the logits. "
        "Observer `mse` where none is named. ResNet-8 of the "
        f"zoo was trained for one epoch on {TRAIN} images of Fashion-MNIST (seed {SEED}); other networks come with trained weights. "
        "OpenVINO "
        "is held back by `ONEDNN_MAX_CPU_ISA`; 'all' is all that this processor has. ONNX Runtime does not read that variable: "
        "'emulated' is a processor of QEMU whose best is AVX2, on the first images only. 'Not made for it' are weights of 8 bits "
        "where sums of products may saturate (it depends on the kernel that the runtime picks): `quantize` writes 7 bits there, and of "
        "a file with 8 `build` makes an engine of ONNX Runtime that multiplies without saturation, which here it was not asked for; "
        "OpenVINO's it compares with the file. NNCF is `nncf.quantize` with its defaults on the same images."
    )
    return [
        "## Accuracy by instruction set",
        "",
        f"Written by `{command}` on {device.name} ({device.facts['instruction_sets']}); do not edit.",
        "",
        about,
        "",
        *tables,
    ]


def insert(out: Path, lines: Sequence[str]) -> None:
    """Put the section into the page, in place of an earlier one."""
    text = out.read_text(encoding="utf-8") if out.is_file() else ""
    head, _, rest = text.partition(BEGIN)
    tail = rest.partition(END)[2]
    write_text(out, "\n".join([head.rstrip(), "", BEGIN, "", *lines, END]) + "\n" + tail.lstrip("\n"))


def main() -> None:
    """Measure what is missing and write the section."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/accuracy"))
    parser.add_argument("--out", type=Path, default=Path("docs/figures/int8.md"))
    parser.add_argument(
        "--net", type=Path, action="append", default=[], help="float32 ONNX file with an .npz beside it"
    )
    parser.add_argument("--count", type=int, default=1000, help="images on the emulated processor")
    parser.add_argument("--one", type=Path, help="measure this network in this process and print JSON")
    parser.add_argument("--runtime", choices=("onnxruntime", "openvino", "emulated", "nncf", *OTHERS))
    given = parser.parse_args()
    if given.one is not None:
        print(json.dumps(alone(given.one, given.runtime, given.count)))
        return
    given.work.mkdir(parents=True, exist_ok=True)
    nets = [trained(given.work), *given.net]
    tables = [line for net in nets for line in table(net, measured(net, given.count))]
    names = "".join(f" --net {net.name}" for net in given.net)
    command = f"python bench/int8_accuracy.py --work {given.work}{names} --count {given.count}"
    insert(given.out, page(tables, command))


if __name__ == "__main__":
    main()
