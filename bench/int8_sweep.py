"""INT8 of many networks beside NNCF's and beside float, and by instruction set. Writes its sections of docs/figures/int8.md.

    python bench/int8_sweep.py --work build/sweep                  # everything that is not there yet, then the page
    python bench/int8_sweep.py --work build/sweep --only 'yolo_*'

Networks of timm and torchvision and some of our own (YOLO-like, U-Net), random weights with fitted batch norms, small inputs.
Errors are relative: ``|y_q - y| / |y|`` over 16 samples that were not calibrated on. Every network leaves a JSON row in the work
folder. NNCF and timm are optional. Instruction sets are capped by ``ONEDNN_MAX_CPU_ISA`` in processes of their own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch import nn
from torch.nn import functional

from pydeploy.backends.base import Session, open_backend
from pydeploy.export import export
from pydeploy.files import read_json, write_json, write_text
from pydeploy.profiling.agreement import build
from pydeploy.quant.calibrate import calibrate
from pydeploy.quant.observe import Ranges
from pydeploy.quant.qdq import quantize
from pydeploy.quant.styles import processor

OBSERVERS = ("entropy", "mse")
TIMM = (
    "cspresnet50 cspdarknet53 cs3darknet_s densenet121 hrnet_w18_small inception_v4 ese_vovnet19b_dw dla34 ghostnet_100 res2net50_14w_8s "
    "mobilenetv3_small_050 efficientnet_lite0 tf_efficientnet_b0 regnety_002 resnet18 repvgg_a0 selecsls42 mobilenetv4_conv_small "
    "hgnetv2_b0 lcnet_050 hardcorenas_a convnext_atto xception41 mixnet_s"
)
TORCHVISION = ("shufflenet_v2_x0_5", "squeezenet1_1", "googlenet", "inception_v3")
CAPS = ("AVX2", "AVX512_CORE", "AVX512_CORE_VNNI", "AVX512_CORE_BF16")
CAPPED = ("resnet18", "yolo_silu", "unet_deconv_relu")
AMX = "avx2 avx512f avx512_vnni avx512_bf16 amx_int8 amx_bf16"
Activation = Callable[[], nn.Module]


def conv(cin: int, cout: int, kernel: int, act: Activation, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(cout), act())


class Bottleneck(nn.Module):
    def __init__(self, width: int, act: Activation, add: bool) -> None:
        super().__init__()
        self.a, self.b, self.add = conv(width, width, 3, act), conv(width, width, 3, act), add

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.b(self.a(x))
        return x + y if self.add else y


class C2f(nn.Module):
    """A split, bottlenecks one after the other, all of them joined."""

    def __init__(self, cin: int, cout: int, count: int, act: Activation, *, add: bool = True) -> None:
        super().__init__()
        half = cout // 2
        self.first, self.last = conv(cin, cout, 1, act), conv((2 + count) * half, cout, 1, act)
        self.inner = nn.ModuleList([Bottleneck(half, act, add) for _ in range(count)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = list(self.first(x).chunk(2, 1))
        for block in self.inner:
            maps.append(block(maps[-1]))
        return self.last(torch.cat(maps, 1))


class Pyramid(nn.Module):
    """Poolings of poolings, joined."""

    def __init__(self, width: int, act: Activation) -> None:
        super().__init__()
        self.first, self.last = conv(width, width // 2, 1, act), conv(width * 2, width, 1, act)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = [self.first(x)]
        for _ in range(3):
            maps.append(self.pool(maps[-1]))
        return self.last(torch.cat(maps, 1))


class Yolo(nn.Module):
    """Backbone, neck that goes up and down again, two heads."""

    def __init__(self, act: Activation, w: int = 16) -> None:
        super().__init__()
        self.low = nn.Sequential(conv(3, w, 3, act, 2), conv(w, 2 * w, 3, act, 2), C2f(2 * w, 2 * w, 1, act))
        self.mid = nn.Sequential(conv(2 * w, 4 * w, 3, act, 2), C2f(4 * w, 4 * w, 2, act))
        self.high = nn.Sequential(conv(4 * w, 8 * w, 3, act, 2), C2f(8 * w, 8 * w, 1, act), Pyramid(8 * w, act))
        self.up, self.down = nn.Upsample(scale_factor=2), conv(2 * w, 2 * w, 3, act, 2)
        self.up1, self.up2 = C2f(12 * w, 4 * w, 1, act, add=False), C2f(6 * w, 2 * w, 1, act, add=False)
        self.back = C2f(6 * w, 4 * w, 1, act, add=False)
        self.fine, self.coarse = nn.Conv2d(2 * w, 24, 1), nn.Conv2d(4 * w, 24, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        low = self.low(x)
        mid = self.mid(low)
        p = self.up1(torch.cat([self.up(self.high(mid)), mid], 1))
        q = self.up2(torch.cat([self.up(p), low], 1))
        return self.fine(q), self.coarse(self.back(torch.cat([self.down(q), p], 1)))


class UNet(nn.Module):
    def __init__(self, act: Activation, up: str, w: int = 16) -> None:
        super().__init__()

        def pair(cin: int, cout: int) -> nn.Sequential:
            return nn.Sequential(conv(cin, cout, 3, act), conv(cout, cout, 3, act))

        def raised(cin: int, cout: int) -> nn.Module:
            if up == "deconv":
                return nn.ConvTranspose2d(cin, cout, 2, 2)
            return nn.Sequential(nn.Upsample(scale_factor=2, mode=up), nn.Conv2d(cin, cout, 1))

        self.a, self.b, self.c, self.pool = pair(3, w), pair(w, 2 * w), pair(2 * w, 4 * w), nn.MaxPool2d(2)
        self.up2, self.d2, self.up1, self.d1 = (
            raised(4 * w, 2 * w),
            pair(4 * w, 2 * w),
            raised(2 * w, w),
            pair(2 * w, w),
        )
        self.out = nn.Conv2d(w, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.a(x)
        b = self.b(self.pool(a))
        y = self.d2(torch.cat([self.up2(self.c(self.pool(b))), b], 1))
        return self.out(self.d1(torch.cat([self.up1(y), a], 1)))


def leaky() -> nn.Module:
    return nn.LeakyReLU(0.1)


OWN: dict[str, Callable[[], nn.Module]] = {
    "yolo_silu": lambda: Yolo(nn.SiLU), "yolo_leaky": lambda: Yolo(leaky), "yolo_hardswish": lambda: Yolo(nn.Hardswish),
    "yolo_gelu": lambda: Yolo(nn.GELU), "yolo_mish": lambda: Yolo(nn.Mish),
    "unet_deconv_relu": lambda: UNet(nn.ReLU, "deconv"), "unet_deconv_silu": lambda: UNet(nn.SiLU, "deconv"),
    "unet_resize_relu": lambda: UNet(nn.ReLU, "nearest"), "unet_bilinear_leaky": lambda: UNet(leaky, "bilinear"),
}  # fmt: skip


def images(count: int, size: int, seed: int) -> torch.Tensor:
    """Smooth noise with another brightness and contrast for each image."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, size // 8, size // 8, generator=draw)
    x = functional.interpolate(coarse, (size, size), mode="bilinear") + 0.25 * torch.randn(
        count, 3, size, size, generator=draw
    )
    return x * (0.5 + torch.rand(count, 1, 1, 1, generator=draw)) + 0.5 * torch.randn(count, 3, 1, 1, generator=draw)


def fitted(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """Batch norms with drawn gains and shifts and the statistics of `x`: every map keeps its spread, noise is not amplified."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.4, 0.9)
            nn.init.uniform_(module.bias, -0.3, 1.0)
            module.momentum = None
            module.reset_running_stats()
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        model.train()(x)
    return model.eval()


def prepare(name: str, work: Path) -> tuple[Path, Any]:
    """The float file and its samples; made once."""
    path, place = work / f"{name}.onnx", work / f"{name}.npz"
    if not place.is_file():
        torch.manual_seed(0)
        size = 96 if "inception" in name else 64
        if name in OWN:
            model = OWN[name]()
        elif name in TORCHVISION:
            import torchvision

            options = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
            model = getattr(torchvision.models, name)(weights=None, **options)
        else:
            import timm

            model = timm.create_model(name, pretrained=False, num_classes=100)
        export(fitted(model, images(64, size, 1)), torch.zeros(1, 3, size, size), path)
        np.savez(place, calib=images(64, size, 2).numpy(), test=images(16, size, 3).numpy())
    return path, np.load(place)


Run = Callable[[np.ndarray], list[np.ndarray]]


def outputs(run: Run, samples: np.ndarray) -> list[np.ndarray]:
    runs = [[np.ravel(value).astype(np.float64) for value in run(sample[None])] for sample in samples]
    return [np.concatenate(found) for found in zip(*runs, strict=True)]


def error(wanted: list[np.ndarray], found: list[np.ndarray]) -> float:
    return max(float(np.linalg.norm(w - f) / np.linalg.norm(w)) for w, f in zip(wanted, found, strict=True))


def on_onnxruntime(path: Path) -> Run:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})


def ours(path: Path, ranges: Ranges, style: str, data: Any, wanted: list[np.ndarray]) -> dict[str, float]:
    """Errors of one style: of the file and, where there is a runtime, of the engine."""
    out = path.with_suffix(f".{style}.q.onnx")
    target = processor(style.removesuffix("-amx"), AMX) if style.endswith("-amx") else None
    quantize(path, ranges, out, style=style.removesuffix("-amx"), target=target)
    found = {f"{style}.file": error(wanted, outputs(on_onnxruntime(out), data["test"]))}
    if style in ("onnxruntime", "openvino"):
        backend = open_backend(style, precision="int8", threads=1)
        name = on_input(path)
        engine = build(
            backend, out, path.with_suffix(".engine"), [{name: sample[None]} for sample in data["calib"][:4]]
        )
        with backend.open(engine) as session:
            found[f"{style}.engine"] = error(wanted, outputs(of_session(session), data["test"]))
    return found


def of_session(session: Session) -> Run:
    (spec,) = session.inputs
    return lambda x: [value.copy() for value in session.run({spec.name: x}).values()]


def on_input(path: Path) -> str:
    return str(ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).get_inputs()[0].name)


def nncf_error(path: Path, data: Any, wanted: list[np.ndarray]) -> float:
    """``nncf.quantize`` with its defaults on the same samples, compiled by OpenVINO in float32 otherwise."""
    import nncf
    import openvino as ov

    name, core = on_input(path), ov.Core()
    samples = [{name: sample[None]} for sample in data["calib"]]
    model = nncf.quantize(core.read_model(path), nncf.Dataset(samples), subset_size=len(samples))
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    return error(wanted, outputs(lambda x: [compiled({name: x})[i].copy() for i in range(len(wanted))], data["test"]))


def measure(name: str, work: Path) -> dict[str, Any]:
    """All errors of one network."""
    path, data = prepare(name, work)
    wanted = outputs(on_onnxruntime(path), data["test"])
    row: dict[str, Any] = {"network": name}
    for observer in OBSERVERS:
        ranges = calibrate(path, [{on_input(path): data["calib"]}], observer=observer, threads=1)
        for style in ("onnxruntime", "openvino", "openvino-amx", "tensorrt"):
            row |= {f"{observer}.{key}": value for key, value in ours(path, ranges, style, data, wanted).items()}
    if importlib.util.find_spec("nncf") is not None:
        row["nncf"] = nncf_error(path, data, wanted)
    return row


def measure_capped(names: list[str], work: Path) -> dict[str, dict[str, float]]:
    """Errors of OpenVINO's engines under the instruction sets of this process: ours, and ours with 8 bits of weights."""
    backend = open_backend("openvino", precision="int8", threads=1)
    found = {}
    for name in names:
        path, data = prepare(name, work)
        wanted = outputs(on_onnxruntime(path), data["test"])
        ranges = calibrate(path, [{on_input(path): data["calib"]}], observer="mse", style="openvino", threads=1)
        row = ours(path, ranges, "openvino", data, wanted)
        wide = path.with_suffix(".wide.onnx")
        quantize(path, ranges, wide, style="openvino", target=processor("openvino", "avx2 avx512f avx512_vnni"))
        with backend.open(backend.build(wide, path.with_suffix(".wide.engine"))) as session:
            found[name] = {**row, "wide": error(wanted, outputs(of_session(session), data["test"]))}
    return found


def swept(rows: list[dict[str, Any]], missing: list[str], command: str) -> list[str]:
    """The table of all networks."""
    shown = {"onnxruntime.engine": "ONNX Runtime", "openvino.engine": "OpenVINO", "openvino-amx.file": "file for AMX",
             "tensorrt.file": "file for TensorRT"}  # fmt: skip
    about = (
        "Relative error of the outputs, beside NNCF's engine on OpenVINO (in brackets: times NNCF's). Random weights with fitted "
        "batch norms, 64 calibration samples, 16 others to judge by. 'File' is the Q/DQ file on ONNX Runtime: the one for processors "
        "with AMX (int8 where a tensor has both signs), and TensorRT's, which may use int8 with zero point 0 only and so has one bit "
        "less behind a ReLU. All engines agree with their files within rounding (`pydeploy.profiling.agreement`)."
    )
    lines = ["## Many networks", "", f"Written by `{command}`; do not edit.", "", about, ""]
    if missing:
        lines += [f"Not run so far: {', '.join(missing)}.", ""]
    for observer in OBSERVERS:
        lines += [
            f"Observer `{observer}`:",
            "",
            f"| network | NNCF | {' | '.join(shown.values())} |",
            "|" + "---|" * (2 + len(shown)),
        ]
        for row in rows:
            base = row.get("nncf")
            cells = [f"{row[f'{observer}.{key}']:.4f}" + (f" ({row[f'{observer}.{key}'] / base:.2f})" if base else "")
                     for key in shown]  # fmt: skip
            lines.append(f"| {row['network']} | {'-' if base is None else f'{base:.4f}'} | {' | '.join(cells)} |")
        lines.append("")
        for key, title in shown.items():
            ratios = [row[f"{observer}.{key}"] / row["nncf"] for row in rows if "nncf" in row]
            if ratios:
                worse = sum(ratio > 1.3 for ratio in ratios)
                lines.append(f"- {title}: median {np.median(ratios):.2f} times NNCF's error, largest {max(ratios):.2f}, {worse} of "
                             f"{len(ratios)} above 1.3.")  # fmt: skip
        lines.append("")
    return lines


def capped(found: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """The table by instruction sets."""
    about = (
        "OpenVINO held to older processors by `ONEDNN_MAX_CPU_ISA`: relative error of the engine. `quantize` writes weights of 7 bits for "
        "processors below VNNI and of 8 bits from it on; in brackets: an engine from weights of 8 bits, whose sums saturate below VNNI. "
        "ONNX Runtime cannot be held back; by its manual it multiplies with the same instruction below VNNI, and gets the same 7 bits."
    )
    lines = [
        "## By instruction set",
        "",
        about,
        "",
        f"| network | {' | '.join(found)} |",
        "|" + "---|" * (1 + len(found)),
    ]
    for name in next(iter(found.values())):
        cells = [f"{rows[name]['openvino.engine']:.4f} ({rows[name]['wide']:.4f})" for rows in found.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


BEGIN, END = "<!-- int8_sweep: begin -->", "<!-- int8_sweep: end -->"


def insert(page: Path, lines: list[str]) -> None:
    """Put the sections into the page, in place of earlier ones."""
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    head, _, rest = text.partition(BEGIN)
    tail = rest.partition(END)[2]
    write_text(page, "\n".join([head.rstrip(), "", BEGIN, "", *lines, END]) + "\n" + tail.lstrip("\n"))


def main() -> None:
    """Measure what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/sweep"))
    parser.add_argument("--out", type=Path, default=Path("docs/figures/int8.md"))
    parser.add_argument("--only", default="*", help="pattern of the networks to measure")
    parser.add_argument(
        "--capped", action="store_true", help="print errors under this process's instruction sets, as JSON"
    )
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if given.capped:
        print(json.dumps(measure_capped(list(CAPPED), given.work)))
        return
    names = [*OWN, *TORCHVISION, *(TIMM.split() if importlib.util.find_spec("timm") is not None else ())]
    for name in names:
        place = given.work / f"{name}.row.json"
        if fnmatchcase(name, given.only) and not place.is_file():
            write_json(place, measure(name, given.work))
            print(place.read_text().strip(), flush=True)
    for cap in CAPS:
        place = given.work / f"{cap}.cap.json"
        if not place.is_file():
            ran = subprocess.run([sys.executable, __file__, "--work", str(given.work), "--capped"], check=True,
                                 env={**os.environ, "ONEDNN_MAX_CPU_ISA": cap}, stdout=subprocess.PIPE)  # fmt: skip
            write_json(place, json.loads(ran.stdout.splitlines()[-1]))
    rows = [read_json(place) for name in names if (place := given.work / f"{name}.row.json").is_file()]
    found = {cap: read_json(given.work / f"{cap}.cap.json") for cap in CAPS}
    missing = [name for name in names if not (given.work / f"{name}.row.json").is_file()]
    insert(given.out, [*swept(rows, missing, f"python bench/int8_sweep.py --work {given.work}"), *capped(found)])


if __name__ == "__main__":
    main()
