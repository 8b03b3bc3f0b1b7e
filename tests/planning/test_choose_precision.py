"""From an ONNX file alone to the recommended precision, and the exit codes that scripts go by."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onnx_nets import residual
from pydeploy.backends.base import Engine, open_backend, reopen
from pydeploy.cli import main
from pydeploy.planning.choose_precision import Found, recommend
from pydeploy.planning.precision_bench import BEST_CLASS
from pydeploy.quant.observe import Ranges
from pydeploy.quant.qdq import quantize
from pydeploy.timing.ratio import Ratio
from pydeploy.timing.records import Timing


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A small classifier and a manifest of 48 pictures."""
    residual(tmp_path / "net.onnx", width=32, batch="N")
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (48, 12, 12, 3), np.uint8))
    way = "preprocessing: {mean: [0.5, 0.5, 0.5], std: [0.3, 0.3, 0.3]}"
    (tmp_path / "set.yaml").write_text(f"source: ./images.npy\ncount: 48\n{way}\n")
    return tmp_path


def verb(place: Path, *more: object) -> int:
    return typed("choose-precision", place / "net.onnx", "--data", place / "set.yaml", "--out", place / "out",
                 "--target", "onnxruntime", "--threads", 1, *more)  # fmt: skip


def typed(*words: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pydeploy", *map(str, words)])
        with pytest.raises(SystemExit) as done:
            main()
    return int(done.value.code or 0)


def test_engines_verdict_and_report(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = verb(place, "--limit", 100, "--batch", 4, "--json")
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((place / "out" / "precisions.json").read_text())
    assert code == (0 if found["recommended"] != "float" else 1)
    assert found["measure"] == BEST_CLASS
    assert found["samples"] == 12  # every fourth of twelve batches of four
    by_name = {one["name"]: one for one in found["engines"]}
    assert {"float", "int8"} <= set(by_name)
    assert by_name["float"]["lost"] == 0.0
    assert "no half-precision engine: the backend has no half precision" in found["reasons"]
    assert found["recommended"] in (place / "out" / "precisions.md").read_text()
    kept = {path.name for path in (place / "out").iterdir()}
    assert kept >= {"float.engine", "int8.engine", "int8.onnx", "ranges.json"}
    assert not [name for name in kept if name.startswith("second")]


def test_what_is_lost_is_counted_by_hand_on_what_did_not_calibrate(place: Path) -> None:
    verb(place, "--limit", 100)
    found = json.loads((place / "out" / "precisions.json").read_text())
    images = np.load(place / "images.npy")[3::4]
    samples = ((images / 255 - 0.5) / 0.3).astype(np.float32).transpose(0, 3, 1, 2)
    rows = []
    for name in ("float", "int8"):
        engine = Engine.load(place / "out" / f"{name}.engine")
        with reopen(engine.target).open(engine) as session:
            name_in, name_out = session.inputs[0].name, session.outputs[0].name
            rows.append([session.run({name_in: one[None]})[name_out][0].argmax() for one in samples])
    lost = 100 * np.mean(np.array(rows[0]) != np.array(rows[1]))
    assert {one["name"]: one["lost"] for one in found["engines"]}["int8"] == pytest.approx(lost)


def test_a_limit_that_nothing_meets_is_exit_code_1(place: Path) -> None:
    assert verb(place, "--limit", 0, "--exclude", "fc") in (0, 1)
    found = json.loads((place / "out" / "precisions.json").read_text())
    chosen = next(one for one in found["engines"] if one["name"] == found["recommended"])
    assert chosen["lost"] == 0.0


@pytest.mark.parametrize(("words", "message"), [
    (["--target", "onnxruntimes"], "unknown backend"), (["--data", "none.yaml"], "none.yaml does not exist"),
    (["--observer", "entropie"], "did you mean 'entropy'"), (["--batch", 30], "too few samples"),
    (["--exclude", "none"], "none"),
])  # fmt: skip
def test_bad_input_is_exit_code_2(
    place: Path, capsys: pytest.CaptureFixture[str], words: list[object], message: str
) -> None:
    assert verb(place, *words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("limit", [100, 0])
def test_mix_writes_what_quantize_would_with_the_other_layers_in_float(
    place: Path, capsys: pytest.CaptureFixture[str], limit: float
) -> None:
    """Which layers they are is measured; that nothing is written is exit code 1."""
    net, ranges, out = residual(place / "fixed.onnx", width=32), place / "ranges.json", place / "mixed.onnx"
    assert typed("calibrate", net, "--data", place / "set.yaml", "--threads", 1, "--out", ranges) == 0
    given = (
        "mix",
        net,
        "--ranges",
        ranges,
        "--data",
        place / "set.yaml",
        "--target",
        "onnxruntime",
        "--threads",
        1,
        "--out",
        out,
    )
    capsys.readouterr()
    code = typed(*given, "--exclude", "f?", "--limit", limit, "--json")
    found = json.loads(capsys.readouterr().out)
    layers = [one["name"] for one in found["layers"]]
    assert "fc" not in layers
    assert (code, out.exists()) == ((0, True) if found["int8"] else (1, False))
    assert found["lost"] <= limit or found["note"] == "all layers are best in int8"
    if found["int8"]:
        backend = open_backend("onnxruntime", precision="int8", threads=1)
        rest = sorted({"fc", *layers} - set(found["int8"]))
        quantize(net, Ranges.load(ranges), place / "same.onnx", target=backend.target(), exclude=rest)
        assert out.read_bytes() == (place / "same.onnx").read_bytes()


@pytest.mark.parametrize(("changes", "message"), [
    ({"model": "net.onnx"}, "open shapes"), ({"--limit": "nan"}, "limit"), ({"--target": "onnxruntime:fp4"}, "fp4"),
    ({"--exclude": "none"}, "cannot exclude 'none'"), ({"--ranges": "set.yaml"}, "not readable JSON"), ({"--batch": "30"}, "fixed.onnx"),
])  # fmt: skip
def test_bad_input_of_mix_is_exit_code_2(
    place: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, str], message: str
) -> None:
    net, ranges = residual(place / "fixed.onnx", width=32), place / "ranges.json"
    assert typed("calibrate", net, "--data", place / "set.yaml", "--threads", 1, "--out", ranges) == 0
    given = {"--ranges": "ranges.json", "--data": "set.yaml", "--target": "onnxruntime", "--threads": "1", **changes}
    model = place / given.pop("model", "fixed.onnx")
    words = [
        word for key, value in given.items() for word in (key, place / value if (place / value).exists() else value)
    ]
    capsys.readouterr()
    code = typed("mix", model, *words, "--out", place / "mixed.onnx")
    assert (code, (place / "mixed.onnx").exists()) == (2, False)
    assert message in capsys.readouterr().err


def engine(name: str, lost: float, value: float, width: float = 0.01, *, disturbed: bool = False) -> Found:
    found = Ratio(value, value - width, value + width, 20, disturbed)
    return Found(name, Path(name), lost, Timing.of([100 * value]), found, 1)


@pytest.mark.parametrize(("others", "expected"), [
    ([engine("int8", 1.0, 0.5)], "int8"), ([engine("int8", 3.0, 0.5)], "float"), ([engine("int8", 1.0, 1.2)], "float"),
    ([engine("int8", 1.0, 0.9, 0.2)], "float"), ([engine("int8", 3.0, 0.4), engine("mixed", 1.0, 0.6)], "mixed"),
    ([engine("int8", 1.0, 0.6), engine("mixed", 1.0, 0.595)], "int8"), ([engine("half", 0.0, 0.7), engine("int8", 1.0, 0.5)], "int8"),
])  # fmt: skip
def test_the_fastest_within_the_limit_beyond_doubt(others: list[Found], expected: str) -> None:
    found = {one.name: one for one in (engine("float", 0.0, 1.0), *others)}
    best, reasons = recommend(found, BEST_CLASS, 2.0)
    assert best == expected
    assert len(reasons) == 1 + sum(one.name != best for one in others)


def test_a_disturbed_measurement_is_told() -> None:
    slow = replace(engine("int8", 0.0, 0.5), ratio=Ratio(0.5, 0.4, 0.6, 20, disturbed=True))
    assert any(
        "other load disturbed" in reason
        for reason in recommend({"float": engine("float", 0, 1), "int8": slow}, "x", 1)[1]
    )
