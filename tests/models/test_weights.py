"""Weights from files of every common form land in the model; what does not fit is listed; code is refused."""

from __future__ import annotations

import argparse
import copy
import io
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

import pydeploy as pd
from pydeploy.errors import DataError, Mismatch
from pydeploy.models.weights import INSIDE, PREFIXES, filled, fitted

# torch.jit says that it is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Net(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Nested(nn.Module):
    """Its own names begin with a prefix that others put before all names."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Net()


def random(model: nn.Module, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(value.shape, generator=generator) if value.is_floating_point() else value.clone() + 3
            for name, value in model.state_dict().items()}  # fmt: skip


def same(model: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


EXTRAS = {"epoch": 3, "args": argparse.Namespace(lr=0.1), "best": np.float64(0.9), "when": "today", "optimizer": {"lr": 1.0},
          "path": Path("x"), "done": np.int64(3), "history": [1.0, np.float32(2)]}  # fmt: skip
FORMS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": lambda state: state,
    "ordered": OrderedDict,
    **{f"under {key}": (lambda state, key=key: {key: state, **EXTRAS}) for key in INSIDE},
    **{
        f"with {prefix}": (lambda state, prefix=prefix: {prefix + k: v for k, v in state.items()})
        for prefix in PREFIXES
    },
    "lightning": lambda state: {"state_dict": {f"model.{k}": v for k, v in state.items()}, **EXTRAS},
    "compiled in parallel": lambda state: {"model": {f"module._orig_mod.{k}": v for k, v in state.items()}},
    "parallel in compiled": lambda state: {"model": {f"_orig_mod.module.{k}": v for k, v in state.items()}},
    "ema twice inside": lambda state: {"ema": {"module": state, "updates": 4}},
    "parameters": lambda state: {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in state.items()},
    "without counters": lambda state: {k: v for k, v in state.items() if "num_batches" not in k},
}


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ""])
@pytest.mark.parametrize("form", FORMS)
def test_every_common_form_is_read(form: str, suffix: str, tmp_path: Path) -> None:
    model = Net()
    state = random(model)
    torch.save(FORMS[form](state), tmp_path / f"w{suffix}")
    made, left = filled(Net(), tmp_path / f"w{suffix}")
    if form == "without counters":
        state = {**state, "body.1.num_batches_tracked": torch.tensor(0)}
    assert same(made, state)
    assert not left


def test_old_files_of_torch_and_half_precision(tmp_path: Path) -> None:
    state = {name: value.half() if value.is_floating_point() else value for name, value in random(Net()).items()}
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    made, _ = filled(Net(), tmp_path / "w.pth")
    assert same(made, {name: value.float() if value.is_floating_point() else value for name, value in state.items()})


def test_safetensors_of_ours_and_of_others(tmp_path: Path) -> None:
    model = Net()
    state = random(model)
    save_file(state, tmp_path / "theirs.safetensors")
    assert same(filled(Net(), tmp_path / "theirs.safetensors")[0], state)
    model.load_state_dict(state)
    graph = pd.trace(model, torch.randn(1, 3, 8, 8))
    plan = pd.uniform(graph, pd.score(model, graph, "l1"), ratio=0.5, align=1)
    pd.save(tmp_path / "ours.safetensors", pd.apply(model, graph, plan), plan)
    cut, _ = filled(Net(), tmp_path / "ours.safetensors")
    assert cut.body[0].out_channels == 4  # type: ignore[index]


def test_a_model_whose_own_names_have_the_prefix(tmp_path: Path) -> None:
    state = random(Nested())
    for name, form in (("own", state), ("wrapped", {f"module.{k}": v for k, v in state.items()}),
                       ("twice", {f"model.{k}": v for k, v in state.items()})):  # fmt: skip
        torch.save(form, tmp_path / f"{name}.pth")
        assert same(filled(Nested(), tmp_path / f"{name}.pth")[0], state), name


# ---- what does not fit


def test_another_number_of_classes(tmp_path: Path) -> None:
    torch.save(random(Net(1000)), tmp_path / "w.pth")
    with pytest.raises(
        Mismatch, match=r"2 of another shape: head.weight is \[1000, 8\], the model's \[5, 8\], .*strict: false"
    ):
        filled(Net(), tmp_path / "w.pth")
    net = Net()
    head = copy.deepcopy(net.head.state_dict())
    made, left = filled(net, tmp_path / "w.pth", strict=False)
    assert "head.weight" in left
    assert torch.equal(made.head.weight, head["weight"])  # type: ignore[union-attr]
    assert torch.equal(made.body[0].weight, random(Net(1000))["body.0.weight"])  # type: ignore[index]


def test_missing_and_unexpected_are_counted_and_the_first_five_named(tmp_path: Path) -> None:
    state = random(Net())
    del state["body.0.bias"]
    torch.save({**state, **{f"more.{i}": torch.zeros(1) for i in range(8)}}, tmp_path / "w.pth")
    with pytest.raises(
        Mismatch,
        match=r"1 missing: body\.0\.bias; 8 unexpected: more\.0, more\.1, more\.2, more\.3, more\.4 and 3 more",
    ):
        filled(Net(), tmp_path / "w.pth")
    filled(Net(), tmp_path / "w.pth", strict=False)


@pytest.mark.parametrize("strict", [True, False])
def test_nothing_that_fits_is_refused_always(tmp_path: Path, *, strict: bool) -> None:
    torch.save({"other.weight": torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(Mismatch, match=r"does not fit the model: \d missing"):
        filled(Net(), tmp_path / "w.pth", strict=strict)


@given(st.sets(st.sampled_from(sorted(Net().state_dict())), max_size=8), st.integers(0, 6))
def test_each_name_is_counted_once(dropped: set[str], added: int) -> None:
    """Brute force: sets of names."""
    model = Net()
    state = {name: value for name, value in random(model).items() if name not in dropped}
    state |= {f"new{i}": torch.zeros(2) for i in range(added)}
    fit = fitted(model, state)
    assert set(fit.taken) == set(model.state_dict()) - dropped
    assert set(fit.missing) == {name for name in dropped if "num_batches" not in name}
    assert len(fit.unexpected) == added


# ---- what is refused


def test_a_pickled_module_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save(Net(), tmp_path / "w.pth")
    with pytest.raises(
        DataError, match=r"holds an object of .*Net.*could run code; save the tensors alone.*state_dict\(\)"
    ):
        filled(Net(), tmp_path / "w.pth")
    (tmp_path / "evil.pth").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "touched").encode() + b"'\ntR.")
    with pytest.raises(DataError):
        filled(Net(), tmp_path / "evil.pth")
    assert not (tmp_path / "touched").exists()


def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(Net().eval(), torch.randn(1, 3, 8, 8)), tmp_path / "w.pt")
    with pytest.raises(DataError, match="is a TorchScript archive, which holds code; save the tensors alone"):
        filled(Net(), tmp_path / "w.pt")


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.txt", "x")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content", [b"", b"text", b"\x80\x02}q\x00.", zipped(), b"\x89PNG\r\n", b"PK\x03\x04"], ids=repr
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_holds_no_weights_is_one_sentence(content: bytes, suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"w{suffix}").write_bytes(content)
    with pytest.raises(DataError) as caught:
        filled(Net(), tmp_path / f"w{suffix}")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_truncated_file(tmp_path: Path) -> None:
    torch.save(random(Net()), tmp_path / "w.pth")
    whole = (tmp_path / "w.pth").read_bytes()
    for size in (10, len(whole) // 2, len(whole) - 10):
        (tmp_path / "cut.pth").write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"is truncated or no file of torch\.save"):
            filled(Net(), tmp_path / "cut.pth")


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {"model": {"lr": 0.1}}, 3, {}], ids=repr)
def test_a_file_without_tensors(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(
        DataError, match="holds no tensors of a network; expected a state dict, or one under state_dict, model"
    ):
        filled(Net(), tmp_path / "w.pth")


def test_missing_files_and_nan(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        filled(Net(), tmp_path / "none.pth")
    with pytest.raises(DataError, match="is a folder"):
        filled(Net(), tmp_path)
    torch.save({**random(Net()), "head.bias": torch.full((5,), torch.nan)}, tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"'head.bias' of the weights holds NaN"):
        filled(Net(), tmp_path / "w.pth")
