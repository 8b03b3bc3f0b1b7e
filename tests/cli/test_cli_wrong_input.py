"""Every verb with everything that may be wrong in one of its arguments: exit code 2, one clear message, nothing written.

The verbs, their arguments and the types are read from the command line itself, so that a new verb or argument is tried as well.
"""

from __future__ import annotations

import json
import re
import shutil
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import typer
from PIL import Image

from pydeploy.cli.app import app
from pydeploy.data.boxes.priors import small
from pydeploy.data.deployment import Deployment
from pydeploy.data.preprocessing import Preprocessing
from pydeploy.export import export
from pydeploy.models import build
from pydeploy.prune.surgery.save import save
from report_factory import sample
from test_cli import Done, pydeploy
from test_tensorrt_trtexec import FOLDER

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

NET, INPUT, OPTION = "pydeploy:resnet8", "1x3x16x16", "width=8"


@dataclass(frozen=True)
class Parameter:
    """One argument or option of a verb."""

    name: str
    flag: str
    """'' for an argument."""
    kind: type
    many: bool


def verbs(of: typer.Typer = app, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Callable[..., None]]]:
    for command in of.registered_commands:
        assert command.callback is not None
        yield " ".join((*path, command.name or command.callback.__name__)), command.callback
    for group in of.registered_groups:
        assert group.typer_instance is not None
        yield from verbs(group.typer_instance, (*path, str(group.name)))


def parameters(verb: Callable[..., None]) -> Iterator[Parameter]:
    for name, hint in typing.get_type_hints(verb, include_extras=True).items():
        if name == "return":
            continue
        kind, info, *_ = typing.get_args(hint)
        inner = [kind for kind in typing.get_args(kind) if kind is not types.NoneType] or [kind]
        many = typing.get_origin(inner[0]) is list or typing.get_origin(kind) is list
        leaf = (typing.get_args(inner[0]) or inner)[0]
        stated = [text for text in (info.default, *(info.param_decls or ())) if str(text).startswith("--")]
        flag = (stated or [f"--{name.strip('_').replace('_', '-')}"])[0]
        yield Parameter(name, "" if type(info).__name__ == "ArgumentInfo" else str(flag), leaf, many)


VERBS = dict(verbs())
CASES = [(verb, one) for verb, function in VERBS.items() for one in parameters(function) if one.kind is not bool]

VALID: Mapping[str, Mapping[str, Any]] = {
    "run": {"config": "config.yaml", "out": "@run"}, "check": {"config": "config.yaml"},
    "train": {"config": "config.yaml", "out": "@train"},
    "eval": {"config": "config.yaml", "model": "small.safetensors", "limit": 4},
    "summary": {"model": NET, "input": INPUT, "option": OPTION},
    "trace": {"model": NET, "input": INPUT, "option": OPTION, "out": "@graph.json"},
    "prune": {"model": NET, "input": INPUT, "option": OPTION, "ratio": 0.5, "out": "@small.safetensors"},
    "recalibrate": {"config": "config.yaml", "model": "small.safetensors", "out": "@recalibrated.safetensors"}, "criteria": {},
    "mask": {"model": NET, "input": INPUT, "option": OPTION, "out": "@masked.safetensors"},
    "oracle": {"model": NET, "input": INPUT, "option": OPTION, "config": "config.yaml", "channels": 2, "batches": 1},
    "finetune": {"config": "config.yaml", "model": "small.safetensors", "teacher": "dense.safetensors", "out": "@tuned"},
    "export": {"model": NET, "input": INPUT, "option": OPTION, "out": "@net.onnx"},
    "calibrate": {"model": "dense.onnx", "data": "set.yaml", "threads": 1, "out": "@ranges.json"},
    "quantize": {"model": "dense.onnx", "ranges": "ranges.json", "out": "@int8.onnx"},
    "export-weights": {"model": "int8.onnx", "out": "@weights"},
    "half": {"model": "dense.onnx", "out": "@half.onnx"},
    "lint": {"model": "int8.onnx"},
    "build": {"model": "dense.onnx", "target": "onnxruntime:fp32", "threads": 1, "out": "@net.engine"},
    "compare": {"reference": "dense.engine", "other": "small.engine", "feeds": 1},
    "report": {"folder": "run"},
    "doctor": {}, "configs": {"names": "smoke", "copy": "@configs"},
    "predict": {"engine": "dense.engine", "images": "picture.png", "preprocessing": "preprocessing.json", "out": "@predicted"},
    "choose-precision": {"model": "dense.onnx", "data": "set.yaml", "target": "onnxruntime", "threads": 1, "out": "@precisions"},
    "mix": {"model": "dense.onnx", "ranges": "ranges.json", "data": "set.yaml", "target": "onnxruntime", "threads": 1,
            "out": "@mixed.onnx"},
    "trtexec-command": {"model": "dense.onnx", "trt": "10.3", "target": "tensorrt:fp32"},
    "gpu-check": {"out": "@check", "config": "config.yaml"},
    "profile engine": {"engine": "dense.engine", "rounds": 1, "runs": 2},
    "profile import": {"times": "trt/net.times.json", "profile": "trt/net.profile.json", "layers": "trt/net.layers.json",
                       "device": "Orin", "trt": "10.3", "out": "@profile.json"},
    "table measure": {"model": "dense.onnx", "graph": "graph.json", "target": "null:fp32", "points": 2, "align": 4, "rounds": 1,
                      "runs": 2, "db": "@t.sqlite"},
    "table probes": {"model": "dense.onnx", "graph": "graph.json", "points": 2, "out": "@probes"},
    "table verify": {"model": "dense.onnx", "graph": "graph.json", "target": "null:fp32", "db": "t.sqlite", "plans": 2},
    "table show": {"db": "t.sqlite"},
    "table plot": {"db": "t.sqlite", "layer": "conv3x3/s1", "out": "@stairs.svg"},
    "table export": {"db": "t.sqlite", "out": "@t.json"},
    "table import": {"file": "t.json", "db": "@copy.sqlite"},
    "ssd branches": {"model": "pydeploy:ssd_small", "option": OPTION, "weights": "ssd.safetensors", "out": "@fewer"},
    "ssd suppression": {"model": "ssd.onnx", "preprocessing": "ssd.json", "out": "@whole.onnx"},
    "table merge": {"sources": "t.sqlite", "db": "@merged.sqlite"},
}  # fmt: skip
"""Arguments with which each verb succeeds; '@' stands before what it writes."""


ELSEWHERE = ("choose-precision", "gpu-check", "mix")
"""Verbs whose own tests read their JSON: they take long, or a GPU."""


def test_all_verbs_are_tried() -> None:
    assert set(VALID) == set(VERBS)


def test_every_verb_has_json() -> None:
    assert [
        verb for verb, function in VERBS.items() if "--json" not in [one.flag for one in parameters(function)]
    ] == []


CONFIG = """
task: {data: synthetic, options: {data_settings: {size: 16, classes: 10, train_size: 64, test_size: 16}}}
model: {name: resnet8, options: {width: 8}}
train: {epochs: 1, batch_size: 32, amp: "off"}
target: {backend: "null"}
table: {points: 2, align: 4}
prune: {budget: 0.7, batch_size: 32}
finetune: {epochs: 1, batch_size: 32, amp: "off"}
"""
SET = "source: images.npy\ncount: 8\npreprocessing: {mean: [0.5, 0.5, 0.5], std: [0.3, 0.3, 0.3]}\n"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of every kind that verbs read, all of one small network, and ``other/``: the same of another network."""
    here = tmp_path_factory.mktemp("good")
    for folder, size, width in ((here, 16, 8), (here / "other", 20, 12)):
        folder.mkdir(exist_ok=True)
        shape = ("--input", f"1x3x{size}x{size}", "-o", f"width={width}")
        data = f"task: {{data: synthetic, options: {{data_settings: {{size: {size}, classes: 10, train_size: 64, test_size: 16}}}}}}"
        (folder / "config.yaml").write_text(
            CONFIG.replace(CONFIG.splitlines()[1], data).replace("width: 8", f"width: {width}")
        )
        (folder / "rgb.yaml").write_text(
            (folder / "config.yaml").read_text().replace("{size:", "{channels: 3, size:").replace("0.7", "0.98")
        )
        np.save(folder / "images.npy", np.random.default_rng(0).integers(0, 256, (12, size, size, 3), np.uint8))
        (folder / "set.yaml").write_text(SET)
        steps = [
            ("trace", NET, *shape, "--out", folder / "graph.json"),
            ("export", NET, *shape, "--out", folder / "dense.onnx"),
            ("prune", NET, *shape, "--ratio", 0.5, "--align", 4, "--out", folder / "small.safetensors", "--plan", folder / "plan.json"),
            ("prune", NET, *shape, "--threshold", 0, "--out", folder / "dense.safetensors"),
            ("export", NET, *shape, "--weights", folder / "small.safetensors", "--out", folder / "small.onnx"),
            ("table", "measure", folder / "dense.onnx", "--graph", folder / "graph.json", "--target", "null:fp32", "--db",
             folder / "t.sqlite", "--points", 2, "--align", 4, "--rounds", 1, "--runs", 2),
            ("table", "export", "--db", folder / "t.sqlite", "--out", folder / "t.json"),
            ("build", folder / "dense.onnx", "--target", "onnxruntime:fp32", "--threads", 1, "--out", folder / "dense.engine"),
            ("build", folder / "small.onnx", "--target", "onnxruntime:fp32", "--threads", 1, "--out", folder / "small.engine"),
            ("calibrate", folder / "dense.onnx", "--data", folder / "set.yaml", "--threads", 1, "--out", folder / "ranges.json"),
            ("quantize", folder / "dense.onnx", "--ranges", folder / "ranges.json", "--style", "tensorrt", "--out", folder / "int8.onnx"),
            ("table", "probes", folder / "dense.onnx", "--graph", folder / "graph.json", "--points", 2, "--out", folder / "probes"),
        ]  # fmt: skip
        for step in steps:
            done = pydeploy(*step)
            assert done.returncode == 0, f"{step}\n{done.stderr}"
        Image.fromarray(np.load(folder / "images.npy")[0]).save(folder / "picture.png")
        detector(folder, size, width)
        ends = onnx.load(folder / "dense.onnx").graph
        way = Preprocessing((0.5, 0.5, 0.5), (0.3, 0.3, 0.3), size, size)
        Deployment(way, tuple("0123456789"), ends.input[0].name, (ends.output[0].name,)).save(folder)
        shutil.copytree(FOLDER / ("10.3" if folder == here else "8.6"), folder / "trt")
        (folder / "run").mkdir()
        sample().save(folder / "run" / "report.json")
    return here


def detector(folder: Path, size: int, width: int) -> None:
    """An SSD's tensors, its file, and what its outputs mean."""
    model, priors = build("ssd_small", width=width, num_classes=20).eval(), small(4 * size)
    save(folder / "ssd.safetensors", model)
    export(model, torch.zeros(1, 3, 4 * size, 4 * size), folder / "ssd.onnx", output_names=["scores", "boxes"])
    way = Deployment(Preprocessing((0.5,) * 3, (0.3,) * 3, (4 * size, 4 * size)), tuple(map(str, range(20))), "image",
                     ("scores", "boxes"), "detection", {"priors": priors.to_json(), "score": 0.3, "iou": 0.45, "most": 100})  # fmt: skip
    shutil.move(way.save(folder), folder / "ssd.json")


# ---------------------------------------------------------------- what may be wrong

HUGE = "9" * 30
NUMBERS: Mapping[type, tuple[str, ...]] = {int: ("", "x", "1.5", "-1", HUGE), float: ("", "x", "-1", "nan", "-inf")}
ANY_TEXT = ("", "no such name", "\udcff", "x" * 3000)
TEXTS: Mapping[str, tuple[str, ...]] = {
    "model": ("resnet8", "pydeploy:", ":", "pydeploy:resnet9", "nosuch:net", "torchvision:resnet19", "none.py:make", "./:make",
              "a.b:c", "none.onnx"),
    "input": ("0x3x8x8", "1x3x16", "1x5x16x16", "-1x3x16x16", "1x3x16x16.0", "1x3x99999999x99999999", f"1x3x{HUGE}x8", "1,3,8,8"),
    "option": ("width", "=3", "width=", "width=0", "width=-1", "width=wide", "nope=3", "width=.inf", "width=2024-13-45", "width=&a [*a]"),
    "target": ("onnxrt", "onnxruntime:", "onnxruntime:fp4", ":fp32", "onnxruntime:fp32,fast", "openvino:bf16,a=b",
               "tensorrt:fp16,sparze", "null:fp32:fp16"),
    "set_": ("a", "=1", "a=1", "train.epochs=-1", "train.epoch=1", "train=3", "train.epochs.deep=1", ".=1", "train.epochs=[",
             "model.name=x",              "task.name=x", "task.data=x", "model.options.width=0", "prune.budget=2", "target.backend=x",
             "quantize={}", "seed=-1"),
    "float_ends": ("middle",), "trt": ("10", "7.2", "99.1", "10.3.0.1.2"), "tensorrt": ("10", "11.0"), "trtexec": ("10", "7.2"),
    "criterion": ("l3", "taylor"), "observer": ("entropi",), "style": ("onxruntime",), "dtype": ("fp16", "float32"),
}  # fmt: skip
CONTENTS: Mapping[str, bytes] = {
    "empty": b"", "a picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "not utf-8": b"caf\xe9: \xff\xfe\n", "json": b"{}",
    "a list": b"[1, 2]",     "yaml": b"a: {b: 1}\n", "deep": b"[" * 1500,
}  # fmt: skip


def wrong_inputs(valid: str, good: Path, scratch: Path) -> Iterator[tuple[str, str]]:
    """Paths that a verb reads: none, a folder, other contents under the right name, other kinds of files, the valid one cut."""
    suffix = Path(valid).suffix
    (scratch / f"folder{suffix}").mkdir()
    yield "missing", str(scratch / "none" / f"none{suffix}")
    yield "an empty folder", str(scratch / f"folder{suffix}")
    yield "no name", ""
    yield "a name that is not utf-8", str(scratch / f"\udcff{suffix}")
    yield "a long name", str(scratch / ("x" * 300 + suffix))
    for name, content in CONTENTS.items():
        (scratch / f"{name}{suffix}").write_bytes(content)
        yield name, str(scratch / f"{name}{suffix}")
    for other in ("plan.json", "images.npy", "t.sqlite", "small.safetensors"):
        if Path(other).suffix != suffix:
            yield f"the good {other}", str(good / other)
    if (good / valid).is_file():
        whole = (good / valid).read_bytes()
        (scratch / f"half of it{suffix}").write_bytes(whole[: len(whole) // 2])
        yield "half of it", str(scratch / f"half of it{suffix}")


def wrong_outputs(valid: str, scratch: Path) -> Iterator[tuple[str, str]]:
    (scratch / "folder").mkdir()
    (scratch / "file").write_text("x")
    if "." in valid:
        yield "a folder", str(scratch / "folder")
        yield "no name", ""
    else:
        yield "a file", str(scratch / "file")
    yield "under a file", str(scratch / "file" / valid)
    yield "a long name", str(scratch / ("x" * 300) / valid)


def words(verb: str, given: Mapping[str, Any], good: Path, scratch: Path) -> list[str]:
    """The command line of `verb`; names of good files and of outputs become paths."""
    flags = {one.name: one.flag for one in parameters(VERBS[verb])}
    line = verb.split()
    for name, value in given.items():
        text = str(value)
        if text.startswith("@"):
            text = str(scratch / "out" / text[1:])
        elif "/" not in text[:1] and text and len(text) < 200 and "\udcff" not in text and (good / text).exists():
            text = str(good / text)
        line += [flags[name]] if value is True else [flags[name], text] if flags[name] else [text]
    return line


OUTPUTS = {"out", "plan", "cache"}
READ: Mapping[str, str] = {
    "config": "config.yaml", "data": "set.yaml", "graph": "graph.json", "weights": "small.safetensors", "table": "t.sqlite",
    "onnx": "dense.onnx", "reuse": "run",
}  # fmt: skip
"""What optional paths are: a file of this kind is expected there."""
BESIDE: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("prune", "table"): {"ratio": None, "budget_us": 100}, ("prune", "budget_us"): {"ratio": None, "table": "t.sqlite"},
    ("prune", "threshold"): {"ratio": None}, ("prune", "energy"): {"ratio": None}, ("prune", "macs"): {"ratio": None},
    ("prune", "params"): {"ratio": None},
    ("prune", "config"): {"criterion": "taylor"}, ("build", "config"): {"data": "set.yaml"}, ("build", "data"): {"target": "tensorrt:int8"},
    ("calibrate", "tensorrt"): {"cache": "@trt.cache"}, ("compare", "onnx"): {"layers": True},
    ("table measure", "onnx"): {"model": None, "graph": None}, ("table measure", "input"): {"model": NET, "graph": None},
    ("table measure", "option"): {"model": NET, "graph": None, "input": INPUT},
    ("table probes", "input"): {"model": NET, "graph": None}, ("table probes", "option"): {"model": NET, "graph": None, "input": INPUT},
    ("table verify", "input"): {"model": NET, "graph": None}, ("table verify", "option"): {"model": NET, "graph": None, "input": INPUT},
}  # fmt: skip
"""What else an argument needs beside it to be looked at."""
FREE = {
    "table show --layer", "profile import --device", "table import --device", "table import --trt",
    "table import --target", "table probes --trtexec",
    "table verify --seed", "trtexec-command --trt",
    "quantize --processor", "lint model", "table plot --layer",
    "prune --threshold", "profile import --trt", "table probes --target", "export --input-name",
}  # fmt: skip
"""Free text, and numbers of which any size means something: these may succeed."""


def wrong(verb: str, one: Parameter, good: Path, scratch: Path) -> list[tuple[str, str]]:
    valid = str(VALID[verb].get(one.name) or READ.get(one.name, "file.yaml"))
    if one.kind is Path:
        output = valid.startswith("@") or one.name in OUTPUTS
        return list(wrong_outputs(valid.lstrip("@"), scratch) if output else wrong_inputs(valid, good, scratch))
    values = (*TEXTS.get(one.name, ()), *ANY_TEXT) if one.kind is str else NUMBERS[one.kind]
    return [(repr(value[:40]), value) for value in values]


def complaint(done: Done) -> str:
    """What is wrong with how a command failed; '' where it is one clear message."""
    said = [line for line in done.stderr.splitlines() if not re.match(r"\[ *\d+:\d\d\] ", line)]
    if done.returncode != 2:
        return f"exit code {done.returncode}"
    if "Traceback" in done.stderr or "\x1b[" in done.stderr:
        return f"a traceback or colours: {done.stderr[-500:]}"
    if said and said[0].startswith("Usage: "):
        return ""
    if not said or not said[0].startswith("error: ") or len(said) > 12 or len(done.stderr) > 2000:
        return f"not one clear message: {done.stderr[:500]}"
    return ""


@pytest.mark.parametrize(
    "verb",
    [
        verb
        for verb in VALID
        if verb
        not in ("run", "gpu-check", "finetune", "oracle", "recalibrate", "train", "eval", "choose-precision", "mix")
    ],
)
def test_the_arguments_that_are_varied_are_right(verb: str, good: Path, tmp_path: Path) -> None:
    done = pydeploy(*words(verb, VALID[verb], good, tmp_path))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", sorted(set(VALID) - set(ELSEWHERE)))
def test_json_is_all_that_a_verb_prints(verb: str, good: Path, tmp_path: Path) -> None:
    given = {name: "rgb.yaml" if value == "config.yaml" else value for name, value in VALID[verb].items()}
    done = pydeploy(*words(verb, {**given, "json": True}, good, tmp_path))
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout), dict | list)


@pytest.mark.parametrize(("verb", "one"), CASES, ids=[f"{verb} {one.flag or one.name}" for verb, one in CASES])
def test_a_wrong_value_is_one_clear_message(verb: str, one: Parameter, good: Path, tmp_path: Path) -> None:
    """Whatever is given for one argument: exit code 2, one message, and no result where it is."""
    given = {
        name: value for name, value in {**VALID[verb], **BESIDE.get((verb, one.name), {})}.items() if value is not None
    }
    faults = []
    for number, (what, value) in enumerate(wrong(verb, one, good, tmp_path)):
        work = tmp_path / f"work{number}"
        line = words(verb, {**given, one.name: "MARK"}, good, work)
        try:
            done = pydeploy(*(value if word == "MARK" else word for word in line))
            fault = complaint(done)
        except BaseException as error:  # what the command line lets through is what a user sees as a traceback
            fault = f"{type(error).__name__}: {str(error)[:300]}"
        free = fault == "exit code 0" and f"{verb} {one.flag or one.name}" in FREE
        if free or (fault == "exit code 1" and verb in ("gpu-check", "lint")):  # their checks found something
            continue
        if fault:
            faults.append(f"{what}: {fault}")
    assert not faults, "\n".join(faults)


OTHERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "half, pictures of another size": ("half", {"data": "other/set.yaml"}),
    "half, samples of another network": ("half", {"data": "other/set.yaml", "config": "other/config.yaml"}),
    "calibrate, pictures of another size": ("calibrate", {"data": "other/set.yaml"}),
    "calibrate, samples of another network": ("calibrate", {"config": "other/config.yaml", "data": "other/set.yaml"}),
    "quantize, ranges of another network": ("quantize", {"ranges": "other/ranges.json"}),
    "taylor, pictures of other channels": ("prune", {"criterion": "taylor", "config": "config.yaml"}),
    "taylor, labels beyond the outputs": ("prune", {"criterion": "taylor", "config": "config.yaml", "option": "num_classes=3"}),
    "weights of another network": ("prune", {"weights": "other/small.safetensors"}),
    "a table of another network": ("prune", {"ratio": None, "budget_us": 50, "table": "other/t.sqlite"}),
    "export, weights of another network": ("export", {"weights": "other/small.safetensors"}),
    "a graph of another network": ("table measure", {"graph": "other/graph.json"}),
    "probes, a graph of another network": ("table probes", {"graph": "other/graph.json"}),
    "verify, a graph of another network": ("table verify", {"graph": "other/graph.json"}),
    "an engine of another network": ("compare", {"other": "other/dense.engine"}),
    "an engine from another file": ("profile engine", {"onnx": "other/dense.onnx"}),
    "a teacher of another network": ("finetune", {"teacher": "other/dense.safetensors"}),
    "a student of another network": ("finetune", {"model": "other/small.safetensors"}),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_what_does_not_belong_together_is_one_clear_message(case: str, good: Path, tmp_path: Path) -> None:
    """Each file is right for itself; together with the rest it is of another network, size or data set."""
    verb, changes = OTHERS[case]
    given = {name: value for name, value in {**VALID[verb], **changes}.items() if value is not None}
    assert not complaint(pydeploy(*words(verb, given, good, tmp_path)))
