"""trtexec: the command by version, and its files, recorded in every version's shape, read as one and the same profile."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trt_surface
from onnx_nets import RESIDUAL_OPS, residual
from pydeploy.backends.tensorrt import compat, trtexec
from pydeploy.backends.tensorrt.options import Options
from pydeploy.backends.tensorrt.trtexec import Files, read_layers, read_profile, read_run, read_times
from pydeploy.errors import BackendUnavailable, ConfigError, DataError
from pydeploy.latency.board import profile_from, target_from
from pydeploy.timing.records import Profile

FOLDER = Path(__file__).parent / "trtexec_files"
VERSIONS = tuple(version.rpartition(".")[0] for version in trt_surface.VERSIONS)
TRUE_US = {
    "": 4.0,
    "stem": 24.0,
    "layer1.0.conv1": 11.0,
    "layer1.0.downsample.0": 6.5,
    "layer1.0.conv2": 15.5,
    "fc": 4.0,
}
"""What the files were made from; pooling belongs to the operator before it."""


def files(version: str) -> Files:
    return Files.beside(FOLDER / version / "net.onnx")


@pytest.mark.parametrize("version", VERSIONS)
def test_every_versions_files_are_the_same_profile(version: str) -> None:
    target = target_from("Jetson Orin Nano", version, "fp16", 1, Options())
    found = profile_from(read_run(files(version)), target, RESIDUAL_OPS)
    assert {name: timing.median_us for name, timing in found.layers.items()} == pytest.approx(TRUE_US, abs=1e-6)
    assert found.whole.median_us == pytest.approx(65.0)
    assert found.whole.n == 41
    assert {timing.n for timing in found.layers.values()} == {77}
    assert found.condition["profiler_us_per_layer"] == pytest.approx(2.0)
    assert found.padding == dict.fromkeys(RESIDUAL_OPS, (8, 8))
    assert Profile.from_json(found.to_json()) == found
    assert found.condition["unstable"] == 0.0


@pytest.mark.parametrize("version", VERSIONS)
def test_formats_and_nodes_in_every_version(version: str) -> None:
    infos = {info.nodes[0]: info for info in read_layers(files(version).layers) if info.nodes}
    assert infos["layer1.0.conv2"].nodes == ("layer1.0.conv2", "layer1.0.add", "sum.relu")
    assert infos["stem"].padding == (8, 8)
    assert infos["stem"].inputs[0].dtype == "float16"
    assert infos["flatten"].nodes == ("flatten", "fc")
    assert infos["pool"].name == ("pool" if version in ("8.6", "10.3") else "__myl_Mean_myl0_0")
    reformat = read_layers(files(version).layers)[0]
    assert (reformat.nodes, reformat.inputs[0].multiple, reformat.outputs[0].multiple) == ((), 1, 8)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_files_are_in_their_versions_shape(version: str) -> None:
    """So that what is read as one profile really is written in six ways: TensorRT's own words, keys and defects."""
    said, new = json.loads(files(version).layers.read_text().replace("\\k", ""), strict=False), version.startswith("11")
    assert ("I/O Tensors" in said) == new
    assert ("Bindings" in said) == (not new)
    tensors = [tensor for layer in said["Layers"] for tensor in (*layer["Inputs"], *layer["Outputs"])]
    assert tensors
    for tensor in tensors:
        assert {"Format", "Datatype"} <= set(tensor) if new else "Format/Datatype" in tensor
        assert ("Format/Datatype" in tensor) == (not new)
        assert ("Location" in tensor) == (version != "8.6")
    assert any("(kHWC8)" in tensor.get("Format", "") for tensor in tensors) == new
    assert any(tensor.get("Format/Datatype") == "Half" for tensor in tensors) == (version == "10.0"), "of Myelin"
    names = [layer["Name"] for layer in said["Layers"]]
    assert (len(set(names)) < len(names)) == (version == "10.0")
    text = files(version).profile.read_text()
    assert ("nan" in text, " inf " in text, "[signal]" in text) == (
        version == "10.3",
        version == "10.0",
        version == "10.16",
    )


def test_layers_of_one_name_are_joined_in_order() -> None:
    run = read_run(files("10.0"))
    assert [layer.name for layer in run.layers[:2]] == [run.layers[0].name, f"{run.layers[0].name} #2"]
    assert [float(layer.samples_us[0]) for layer in run.layers[:2]] == pytest.approx([2.5, 1.5])


def test_a_myelin_layer_that_names_no_layout_has_no_padding() -> None:
    (pool,) = [info for info in read_layers(files("10.0").layers) if info.nodes == ("pool",)]
    assert (pool.kind, pool.padding, pool.inputs[0].dtype) == ("kgen", (0, 0), "float16")


def test_signals_are_no_layers() -> None:
    assert "signal" in files("10.16").profile.read_text()
    assert len(read_layers(files("10.16").layers)) == len(read_profile(files("10.16").profile)[1]) == 7


def test_a_lone_backslash_and_nan_are_repaired() -> None:
    text = files("10.3").profile.read_text()
    with pytest.raises(ValueError, match=r"escape|Expecting"):
        json.loads(text)
    assert read_profile(files("10.3").profile)[1][-1] == ("flatten + fc\\kgemm", pytest.approx(6.0))


def test_means_are_not_used_where_there_are_medians(tmp_path: Path) -> None:
    """The profile's mean holds the warm-up runs: in these files it is a tenth higher."""
    path = tmp_path / "p.json"
    rows = [{"count": 3}, {"name": "a", "timeMs": 9.0, "averageMs": 3.0, "medianMs": 2.0, "percentage": 100}]
    path.write_text(json.dumps(rows))
    assert read_profile(path) == (3, [("a", 2000.0)])
    path.write_text(json.dumps(rows).replace("2.0", "nan"))
    assert read_profile(path) == (3, [("a", 3000.0)])


names = st.text(
    st.characters(min_codepoint=1, max_codepoint=0x2FF, exclude_characters='"', exclude_categories=("Cs",)), min_size=1
)


@given(st.lists(names, min_size=1, max_size=4))
def test_any_name_that_is_written_unescaped_is_read(
    tmp_path_factory: pytest.TempPathFactory, given_names: list[str]
) -> None:
    """Names go into the file as they are. Only a backslash before a letter that JSON knows cannot be told from an escape."""
    known = [name for name in given_names if "\\" not in name]
    path = tmp_path_factory.mktemp("names") / "p.json"
    rows = [f'{{ "name" : "{name}", "medianMs" : 1, "percentage" : nan }}' for name in [*known, "end\\x"]]
    path.write_text("[" + ", ".join(rows) + "]", encoding="utf-8", newline="")
    found = [name for name, _ in read_profile(path)[1]]
    expected = [name for name in [*known, "end\\x"] if not trtexec._NO_LAYER.match(name)]
    assert found == [name.replace("\r\n", "\n").replace("\r", "\n") for name in expected]


BAD = {
    "empty": "",
    "object": "{}",
    "text": "hello",
    "numbers": "[1, 2]",
    "other": '[{"x": 1}]',
    "cut": '[{"computeMs": 1}, {"comp',
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_text(text)
    for read in (read_times, read_profile, read_layers):
        with pytest.raises(DataError, match=r"f\.json"):
            read(path)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        read_times(path)


def test_times_are_of_computing_alone(tmp_path: Path) -> None:
    """Not of copies to and from the device, nor of enqueueing."""
    path = tmp_path / "t.json"
    path.write_text(
        '[{"h2dMs": 0.5, "computeMs": 1.0, "d2hMs": 0.25, "latencyMs": 1.75, "startEnqMs": 0, "endEnqMs": 9}]'
    )
    np.testing.assert_array_equal(read_times(path), [1000.0])


@pytest.mark.parametrize("spelled", ["nan", "-nan", "inf", "-inf", "+inf", "NaN", "Infinity", "-Infinity"])
def test_a_median_that_is_no_number_gives_way_to_the_mean(spelled: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(
        f'[{{"count": 2}}, {{"name": "a", "averageMs": 3, "medianMs": {spelled}, "percentage": {spelled}}}]'
    )
    assert read_profile(path) == (2, [("a", 3000.0)])


@pytest.mark.parametrize("text", ['[{"computeMs": 0}]', '[{"computeMs": nan}]', '[{"computeMs": -inf}]', "[]"])
def test_times_that_are_none_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"t\.json holds no usable times"):
        read_times(path)


@pytest.mark.parametrize("count", ["inf", "null", '"x"'])
def test_a_count_that_is_none_is_refused(count: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(f'[{{"count": {count}}}, {{"name": "a", "medianMs": 1}}]')
    with pytest.raises(DataError, match=r"p\.json is not a file of trtexec --exportProfile"):
        read_profile(path)


def test_files_of_another_model_are_refused() -> None:
    """Else every layer of the model would seem to take no time."""
    target = target_from("x", "10.3", "fp16", 1, Options())
    with pytest.raises(DataError, match="name none of its operators"):
        profile_from(read_run(files("10.3")), target, ["conv_a", "conv_b"])


def test_unstable_clocks_are_flagged(tmp_path: Path) -> None:
    path = tmp_path / "net.times.json"
    path.write_text(json.dumps([{"computeMs": ms} for ms in np.linspace(1.0, 1.5, 50)]))
    others = files("8.6")
    found = profile_from(
        read_run(Files(path, others.profile, others.layers)), target_from("x", "8.6", "fp16", 1, Options())
    )
    assert found.whole.disturbed
    assert found.condition["unstable"] == 1.0
    assert "stem" in found.layers


# ---------------------------------------------------------------- the command


def switches(version: str, precision: str = "fp16", *, typed: bool = False, options: str = "") -> set[str]:
    found = trtexec.command(
        Path("m.onnx"), compat.parse_version(version), precision, typed_file=typed, options=Options.parse(options)
    )
    assert found[:2] == ["trtexec", "--onnx=m.onnx"]
    return set(found[2:])


ALWAYS = {"--profilingVerbosity=detailed", "--timingCacheFile=timing.cache", "--maxAuxStreams=0", "--warmUp=500", "--duration=5",
          "--exportTimes=m.times.json", "--exportProfile=m.profile.json", "--exportLayerInfo=m.layers.json"}  # fmt: skip
BEFORE_11 = {"--noDataTransfers", "--useCudaGraph", "--useSpinWait", "--separateProfileRun"}


@pytest.mark.parametrize(
    ("version", "precision", "typed", "extra"),
    [("8.6", "fp32", False, BEFORE_11 | {"--noTF32"}), ("8.6", "tf32", False, BEFORE_11), ("8.6", "fp16", False, BEFORE_11 | {"--fp16"}),
     ("8.6", "int8", False, BEFORE_11 | {"--fp16", "--int8"}), ("10.3", "bf16", False, BEFORE_11 | {"--bf16"}),
     ("10.3", "fp16", True, BEFORE_11 | {"--stronglyTyped"}), ("10.16", "fp16", True, BEFORE_11 | {"--stronglyTyped"}),
     ("10.16", "fp32", False, BEFORE_11 | {"--stronglyTyped", "--noTF32"}), ("11.4", "fp16", True, set()),
     ("11.4", "int8", True, set()), ("11.4", "fp32", False, {"--noTF32"})],
)  # fmt: skip
def test_the_command_by_version(version: str, precision: str, typed: bool, extra: set[str]) -> None:
    assert switches(version, precision, typed=typed) == ALWAYS | extra


def test_options_reach_the_command() -> None:
    text = "sparse,dla_core=1,workspace_mib=256,optimization_level=4,timing_cache=/tmp/x.cache,calibration=c.cache"
    found = switches("10.3", "int8", options=text)
    assert {"--sparsity=enable", "--useDLACore=1", "--allowGPUFallback", "--memPoolSize=workspace:256",
            "--builderOptimizationLevel=4", "--timingCacheFile=/tmp/x.cache", "--calib=c.cache"} <= found  # fmt: skip


def test_a_calibration_cache_goes_with_flags() -> None:
    """A strongly typed network takes no calibrator, and from 11 on there is none."""
    found = switches("10.16", "int8", options="calibration=c.cache")
    assert found == ALWAYS | BEFORE_11 | {"--fp16", "--int8", "--calib=c.cache"}
    for version in ("11.0", "11.4"):
        with pytest.raises(ConfigError, match=f"TensorRT {version} has no calibrators any more"):
            switches(version, "int8", options="calibration=c.cache")


def test_a_precision_that_the_version_lacks_is_refused() -> None:
    with pytest.raises(BackendUnavailable, match=r"bf16 needs TensorRT 10 or newer, this is 8\.6"):
        switches("8.6", "bf16")
    with pytest.raises(BackendUnavailable, match="bf16 needs TensorRT 10"):
        target_from("x", "8.6.1", "bf16", 1, Options())


@pytest.mark.parametrize(
    ("text", "reason"),
    [("10", "looks like 10.3, got '10'"), ("ten", "looks like"), ("10.3rc1", "looks like"), ("", "looks like"),
     ("8.5.3", "8.5.3 is too old, pydeploy knows 8.6"), ("7.2", "too old")],
)  # fmt: skip
def test_a_stated_version_is_checked(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        compat.stated_version(text)
    with pytest.raises(ConfigError, match=reason):
        target_from("x", text, "fp16", 1, Options())


def test_stated_versions_are_read() -> None:
    assert [compat.stated_version(text) for text in ("8.6", "8.6.1", "10.16.1.11")] == [(8, 6), (8, 6), (10, 16)]


@pytest.mark.parametrize(
    ("banner", "expected"),
    [("&&&& RUNNING TensorRT.trtexec [TensorRT v8601] # trtexec --help", (8, 6)),
     ("&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec", (10, 3)),
     ("&&&& RUNNING TensorRT.trtexec [TensorRT v101601] [b11] # trtexec", (10, 16)), ("TensorRT v110400", (11, 4)), ("none", None)],
)  # fmt: skip
def test_the_installed_version_is_read_from_the_banner(banner: str, expected: tuple[int, int] | None) -> None:
    assert compat.trtexec_version(banner) == expected


def test_the_installed_trtexec_is_asked(tmp_path: Path) -> None:
    program = tmp_path / "trtexec"
    program.write_text('#!/bin/sh\necho "&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # $0 $1"\n')
    program.chmod(0o755)
    places = (str(tmp_path / "nowhere"), str(program))
    assert trtexec.find(places) == (str(program), (10, 3))
    program.write_text("#!/bin/sh\nexit 1\n")
    assert trtexec.find(places) is None
    assert trtexec.find(places[:1]) is None


def test_the_verb_prints_one_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pydeploy.cli.tensorrt_verbs import trtexec_command

    model = residual(tmp_path / "my net.onnx", batch="N")
    trtexec_command(model, target="tensorrt:fp16,sparse", trt="8.6", batch=4)
    said = capsys.readouterr()
    arguments = shlex.split(said.out)
    assert said.out.count("\n") == 1
    assert f"--onnx={model}" in arguments
    assert "--shapes=image:4x3x12x12" in arguments
    assert said.err == ""
    trtexec_command(model, target="tensorrt:fp16", trt="11.4", batch=4)
    assert "takes precision from the file" in capsys.readouterr().err
    monkeypatch.setattr(trtexec, "PLACES", ())
    with pytest.raises(BackendUnavailable, match="no trtexec on this machine"):
        trtexec_command(model, target="tensorrt:fp16", trt="", batch=1)
