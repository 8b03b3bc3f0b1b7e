"""A cut module is an ordinary module: copied, pickled, compiled, trained, wrapped for distributed training, saved and loaded."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pydeploy as pd
import zoo
from oracle import random_plan, randomize
from pydeploy.errors import DataError, Mismatch
from pydeploy.plan import Plan
from pydeploy.prune.structure.trace import trace
from pydeploy.prune.surgery.apply import apply

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
SHAPE = (4, 3, 8, 8)
ZOO = sorted(zoo.ZOO)


def cut(name: str) -> tuple[nn.Module, nn.Module, Plan, Tensor]:
    """A network as it was, cut, the plan, and an input."""
    torch.manual_seed(0)
    dense, x = randomize(zoo.build(name)), torch.rand(SHAPE)
    graph = trace(dense, x)
    plan = random_plan(graph, np.random.default_rng(0))
    return dense, apply(dense, graph, plan), plan, x


def same(one: nn.Module, two: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(one.eval()(x), two.eval()(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ZOO)
def test_copies_pickles_and_files_compute_the_same(name: str, tmp_path: Path) -> None:
    dense, small, plan, x = cut(name)
    same(copy.deepcopy(small), small, x)
    same(pickle.loads(pickle.dumps(small)), small, x)
    torch.save(small, tmp_path / "whole.pt")
    same(torch.load(tmp_path / "whole.pt", weights_only=False), small, x)
    pd.save(tmp_path / "small.safetensors", small, plan)
    same(pd.load(tmp_path / "small.safetensors", dense), small, x)
    torch.save(small.state_dict(), tmp_path / "small.pth")
    same(pd.load(tmp_path / "small.pth", dense), small, x)
    again = pd.load(tmp_path / "small.safetensors", dense)
    again.load_state_dict(torch.load(tmp_path / "small.pth", weights_only=True))
    same(again, small, x)


def step(model: nn.Module, x: Tensor) -> None:
    """One step of training."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model(x).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("name", ZOO)
def test_compiled_it_computes_and_learns_the_same(name: str) -> None:
    _, small, _, x = cut(name)
    other = copy.deepcopy(small)
    compiled: Any = torch.compile(other, backend="aot_eager", fullgraph=True)
    same(compiled, small, x)
    for model in (small, compiled):
        model.train()
        torch.manual_seed(0)
        step(model, x)
    same(compiled, small, x)
    torch._dynamo.reset()


def _worker(rank: int, folder: str, small: nn.Module, x: Tensor) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(copy.deepcopy(small).train())  # `spawn` shares memory
    step(model, x[rank * 2 : rank * 2 + 2])
    if rank == 0:
        torch.save(model.state_dict(), f"{folder}/trained.pth")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_train_it_as_one_does(tmp_path: Path) -> None:
    dense, small, plan, x = cut("residual")
    pd.save(tmp_path / "small.safetensors", small, plan)
    for module in small.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0  # each process has statistics of its own batch
    alone = copy.deepcopy(small).train()
    halves = [copy.deepcopy(alone) for _ in range(2)]
    losses = [model(part).square().mean() for model, part in zip(halves, x.split(2), strict=True)]
    for loss in losses:
        loss.backward()
    torch.multiprocessing.spawn(_worker, (str(tmp_path), small, x), nprocs=2)
    trained = pd.load(tmp_path / "trained.pth", dense)
    for name, parameter in alone.named_parameters():
        gradient = torch.stack([dict(model.named_parameters())[name].grad for model in halves]).mean(0)
        torch.testing.assert_close(dict(trained.named_parameters())[name], parameter - 0.01 * gradient)


class Halves(nn.Module):
    """Keeps a width in a number."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 6
        self.a, self.b, self.c = nn.Conv2d(3, 12, 3), nn.Conv2d(6, 6, 1), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.a(x).split(self.width, 1)
        return self.c(torch.cat([self.b(one), two], 1))


def test_numbers_of_modules_travel_with_pickles_and_files(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense, x = Halves(), torch.rand(SHAPE)
    graph = trace(dense, x)
    plan = random_plan(graph, np.random.default_rng(0), 0.5)
    small = apply(dense, graph, plan)
    assert small.width != dense.width
    for again in (pickle.loads(pickle.dumps(small)), copy.deepcopy(small)):
        assert again.width == small.width
        same(again, small, x)
    pd.save(tmp_path / "small.safetensors", small, plan)
    same(pd.load(tmp_path / "small.safetensors", dense), small, x)


def test_checkpoints_of_loops_are_read_and_others_refused(tmp_path: Path) -> None:
    dense, small, _, x = cut("residual")
    weights = small.state_dict()
    held: list[Any] = [{"state_dict": weights, "epoch": 3}, {"model": {f"_orig_mod.{k}": v for k, v in weights.items()}},
                       {f"module._orig_mod.{k}": v for k, v in weights.items()}]  # fmt: skip
    for number, content in enumerate(held):
        torch.save(content, tmp_path / f"{number}.pt")
        same(pd.load(tmp_path / f"{number}.pt", dense), small, x)
    torch.save(small, tmp_path / "whole.pt")
    with pytest.raises(DataError, match=r"torch.save\(model.state_dict\(\), path\)"):
        pd.load(tmp_path / "whole.pt", dense)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(DataError, match="holds a list"):
        pd.load(tmp_path / "list.pt", dense)
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
    with pytest.raises(Mismatch, match="has no tensor"):
        pd.load(tmp_path / "other.pt", dense)
    (tmp_path / "cut.pt").write_bytes((tmp_path / "0.pt").read_bytes()[:-200])
    with pytest.raises(DataError, match="truncated"):
        pd.load(tmp_path / "cut.pt", dense)
