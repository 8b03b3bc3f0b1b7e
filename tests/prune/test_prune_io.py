"""Files of pruned models: bit-identical, trainable, strict; wrong, truncated and edited files are refused."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize

import pydeploy
from oracle import random_plan
from patterns import PATTERNS
from pydeploy.errors import DataError, DeployError, Mismatch
from pydeploy.graph import Graph
from pydeploy.models import MODELS
from pydeploy.plan import Plan
from pydeploy.planning.baselines import uniform
from pydeploy.prune.criteria.score import score
from pydeploy.prune.structure.trace import trace
from pydeploy.prune.surgery.apply import apply
from pydeploy.prune.surgery.save import load, load_plan, read, save
from zoo import SHAPE, build


def saved(path: Path, name: str = "residual", **kw: Any) -> nn.Module:
    model = build(name, **kw)
    graph = trace(model, torch.zeros(SHAPE))
    plan = uniform(graph, score(model, graph, "l1"), ratio=0.5, align=1)
    small = apply(model, graph, plan)
    save(path, small, plan)
    return small


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite the file's JSON header, as someone with an editor would."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def test_metadata_says_what_the_file_holds(tmp_path) -> None:
    saved(tmp_path / "m.safetensors")
    _, facts = read(tmp_path / "m.safetensors")
    assert facts["model"] == "Residual"
    assert facts["version"] == pydeploy.__version__
    assert load_plan(tmp_path / "m.safetensors").widths["stem.0"] == 4


class FakeQuantized(nn.Module):
    """Straight-through int8 weights: what quantization-aware training puts on a layer."""

    def forward(self, weight: Tensor) -> Tensor:
        scale = float(weight.detach().abs().max()) / 127
        return torch.fake_quantize_per_tensor_affine(weight, scale, 0, -127, 127)


@pytest.mark.parametrize("aware", [False, True], ids=["fine-tune", "quantization-aware"])
def test_a_loaded_model_trains(aware: bool, tmp_path) -> None:
    small = saved(tmp_path / "m.safetensors")
    network = load(tmp_path / "m.safetensors", build("residual", seed=3)).train()
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in small.state_dict().items())
    if aware:
        for layer in [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]:
            parametrize.register_parametrization(layer, "weight", FakeQuantized())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    x, target = torch.randn(16, *SHAPE[1:]), torch.randint(0, 5, (16,))
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(x), target)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_flags_and_memory_format_survive(dtype: torch.dtype, tmp_path) -> None:
    model = build("scaled").to(dtype)
    save(tmp_path / "m.safetensors", model)
    fresh = build("scaled", seed=9).to(dtype).to(memory_format=torch.channels_last)
    fresh.gain.requires_grad_(requires_grad=False)
    loaded = load(tmp_path / "m.safetensors", fresh)
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())
    assert loaded.shared.weight.is_contiguous(memory_format=torch.channels_last)
    assert loaded.tied.weight is loaded.shared.weight
    assert not loaded.gain.requires_grad
    assert not torch.equal(fresh.a.weight, loaded.a.weight), "the model that was given is left as it was"


def test_the_first_differing_tensor_is_named(tmp_path) -> None:
    path = tmp_path / "m.safetensors"
    saved(path)
    wide = build("residual")
    wide.stem[0] = nn.Conv2d(3, 9, 3, padding=1, bias=False)  # the cut would fit into it
    with pytest.raises(Mismatch, match=r"'stem.0.weight' has the shape \[9, 3, 3, 3\] in the model and \[8, 3, 3, 3\]"):
        load(path, wide)
    extra = build("residual")
    extra.fc = nn.Linear(12, 5, bias=False)
    with pytest.raises(Mismatch, match=r"the model has no tensor 'fc.bias'.*the saved Residual"):
        load(path, extra)
    with pytest.raises(Mismatch, match=r"'stem.0.weight' is torch.float32.*torch.float64"):
        load(path, build("residual").double())


def test_a_plan_for_another_model_names_the_first_difference() -> None:
    narrow, wide = MODELS["resnet8"](), MODELS["resnet20"]()
    example = torch.zeros(1, 3, 32, 32)
    graph = trace(narrow, example)
    plan = uniform(graph, score(narrow, graph, "l1"), ratio=0.5, align=1)
    with pytest.raises(Mismatch, match=r"the plan is for graph .* \('.*' is .* there, .* here\)"):
        apply(wide, trace(wide, example), plan)


def drop_plan(header: dict[str, Any]) -> None:
    header["__metadata__"]["plan"] = header["__metadata__"]["plan"][:-20]


def fractional(header: dict[str, Any]) -> None:
    plan = json.loads(header["__metadata__"]["plan"])
    plan["kept"]["stem.0"][0] = 1.5
    header["__metadata__"]["plan"] = json.dumps(plan)


def kept_as_text(header: dict[str, Any]) -> None:
    header["__metadata__"]["plan"] = header["__metadata__"]["plan"].replace('"kept": {', '"kept": {"a": "012", ')


def schema(header: dict[str, Any]) -> None:
    header["__metadata__"]["schema"] = "7"


def mark(header: dict[str, Any]) -> None:
    header["__metadata__"]["format"] = "pt"


def rename(header: dict[str, Any]) -> None:
    header["fc.weights"] = header.pop("fc.weight")


def reshape(header: dict[str, Any]) -> None:
    header["fc.weight"]["shape"] = header["fc.weight"]["shape"][::-1]


def outside(header: dict[str, Any]) -> None:
    header["fc.weight"]["data_offsets"][1] += 10**9


def numbers_as_text(header: dict[str, Any]) -> None:
    header["__metadata__"]["numbers"] = '{"fc.out_features": ["five"]}'


EDITS = {drop_plan: "the plan in .* is damaged", fractional: "the plan in .* is damaged", kept_as_text: "is damaged",
         numbers_as_text: "the numbers of modules in .* are damaged",
         schema: "schema '7', expected '1'", mark: "not written by pydeploy.save", rename: "was changed after",
         reshape: "was changed after", outside: "truncated or not a safetensors file"}  # fmt: skip


@pytest.mark.parametrize("change", EDITS, ids=lambda change: change.__name__)
def test_edited_files_are_refused(change: Callable[[dict[str, Any]], None], tmp_path) -> None:
    path = tmp_path / "m.safetensors"
    saved(path)
    edit(path, change)
    with pytest.raises(DataError, match=EDITS[change]):
        load(path, build("residual"))


@pytest.mark.parametrize("name", ["kept_width", "kept_sizes", "kept_two_numbers"])
def test_numbers_that_modules_keep_of_their_widths_survive(name: str, tmp_path) -> None:
    model, x = PATTERNS[name][0]().eval(), torch.randn(2, 3, 8, 8)
    graph = trace(model, x)
    plan = random_plan(graph, np.random.default_rng(4), 0.4)
    assert Graph.from_json(json.loads(json.dumps(graph.to_json()))) == graph
    small = apply(model, graph, plan)
    save(tmp_path / "m.safetensors", small, plan)
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "m.safetensors", PATTERNS[name][0]())(x), small(x))
    edit(tmp_path / "m.safetensors", lambda header: header["__metadata__"].update(numbers='{"c.weight": [3]}'))
    with pytest.raises(Mismatch, match=r"the model has no number 'c.weight', which .* has"):
        load(tmp_path / "m.safetensors", PATTERNS[name][0]())


def test_a_flipped_bit_is_noticed(tmp_path) -> None:
    path = tmp_path / "m.safetensors"
    saved(path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="contradict its checksum"):
        load(path, build("residual"))


@given(st.floats(0, 1), st.integers(0, 255))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_cut_off_or_overwritten_gives_a_clear_error(tmp_path, share: float, byte: int) -> None:
    path = tmp_path / "m.safetensors"
    if not (tmp_path / "whole").exists():
        saved(tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    at = int(share * (len(data) - 1))
    for broken in (data[:at], data[:at] + bytes([data[at] ^ (byte or 1)]) + data[at + 1 :]):
        path.write_bytes(broken)
        try:
            loaded = load(path, build("residual"))
        except DeployError:
            continue
        sound = load(tmp_path / "whole", build("residual"))
        assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in sound.state_dict().items())


def meta(model: nn.Module) -> nn.Module:
    return model.to("meta")


def sparse(model: nn.Module) -> nn.Module:
    model.fc.weight = nn.Parameter(model.fc.weight.detach().to_sparse())
    return model


def quantized(model: nn.Module) -> nn.Module:
    model.register_buffer("q", torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8))
    return model


def lazy(model: nn.Module) -> nn.Module:
    model.fc = nn.LazyLinear(5)
    return model


@pytest.mark.parametrize(
    ("change", "text"), [(meta, "meta"), (sparse, "sparse"), (lazy, "uninitialized"), (quantized, "quantized")]
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_without_plain_values_are_refused(
    change: Callable[[nn.Module], nn.Module], text: str, tmp_path
) -> None:
    model = build("residual")
    if change is quantized:
        model.register_buffer("q", torch.zeros(3))
    graph = trace(model, torch.zeros(SHAPE))
    broken = change(build("residual"))
    with pytest.raises(DataError, match=f"is an? {text} tensor"):
        apply(broken, graph, Plan({"a.0": (0, 1)}, graph.fingerprint))
    with pytest.raises(DataError, match=f"is an? {text} tensor"):
        save(tmp_path / "m.safetensors", broken)
    assert not (tmp_path / "m.safetensors").exists()
