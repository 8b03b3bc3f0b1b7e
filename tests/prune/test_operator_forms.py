"""Operators with unusual arguments: no rule fails on them, and the cut network computes what the silenced one does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oracle import random_plan, randomize, silenced_output
from patterns import conv
from pydeploy.prune.structure.trace import trace
from pydeploy.prune.surgery.apply import apply

pytestmark = pytest.mark.filterwarnings("ignore")
FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum dtype": lambda y: y.sum(dtype=torch.float64),
    "mean dtype": lambda y: y.mean(dtype=torch.float64),
    "prod": lambda y: y.prod(dtype=torch.float64),
    "prod dim": lambda y: y.prod(-1),
    "norm dtype": lambda y: torch.norm(y, 2, dtype=torch.float64),
    "norm p": lambda y: y.norm(1),
    "norm dims": lambda y: y.norm(2, (2, 3), keepdim=True),
    "vector_norm inf": lambda y: torch.linalg.vector_norm(y, float("inf"), 1),
    "std unbiased": lambda y: y.std(unbiased=False),
    "var dims": lambda y: y.var((2, 3), unbiased=False),
    "std_mean": lambda y: torch.std_mean(y, (2, 3))[0],
    "var_mean": lambda y: torch.var_mean(y, 1)[1],
    "max": lambda y: y.max(),
    "max dim": lambda y: y.max(2)[0],
    "amax none": lambda y: y.amax(),
    "argmax dim": lambda y: y.argmax(-1, keepdim=True),
    "all dims": lambda y: (y > 0).all(3),
    "logsumexp": lambda y: y.logsumexp((2, 3)),
    "sort stable": lambda y: y.sort(dim=3, stable=True)[0],
    "sort desc": lambda y: y.sort(-1, descending=True)[0],
    "argsort": lambda y: y.argsort(2),
    "topk": lambda y: y.topk(2, dim=2)[0],
    "topk chan": lambda y: y.topk(2, 1)[0],
    "cumsum": lambda y: y.cumsum(-1),
    "cumprod": lambda y: y.cumprod(2),
    "cummax": lambda y: y.cummax(2)[0],
    "roll flat": lambda y: y.roll(3),
    "roll": lambda y: y.roll((1, 2), (2, 3)),
    "flip": lambda y: y.flip(1),
    "flip2": lambda y: y.flip((2, 3)),
    "rot90": lambda y: y.rot90(1, (2, 3)),
    "softmax dtype": lambda y: y.softmax(2, dtype=torch.float64),
    "softmax chan": lambda y: y.softmax(1),
    "log_softmax": lambda y: F.log_softmax(y, -1),
    "clamp tensor": lambda y: torch.clamp(y, torch.zeros(()), torch.ones(())),
    "clamp own": lambda y: torch.clamp(y, y * 0, y * 2),
    "where": lambda y: torch.where(y > 0, y, torch.zeros_like(y)),
    "where num": lambda y: torch.where(y > 0, y, 0.0),
    "masked": lambda y: y.masked_fill(y < 0, 0.0),
    "select": lambda y: y[:, 2],
    "select last": lambda y: y.select(-1, -1),
    "unbind": lambda y: torch.stack(y.unbind(3), 3),
    "unbind chan": lambda y: torch.stack(y.unbind(1)),
    "chunk": lambda y: torch.cat(y.chunk(3, 1)[::-1], 1),
    "split uneven": lambda y: y.split([1, 7], 1)[1],
    "tensor_split": lambda y: y.tensor_split(3, 1)[0],
    "hsplit": lambda y: y.hsplit(2)[0],
    "slice step": lambda y: y[:, ::2],
    "slice neg": lambda y: y[:, -4:],
    "slice empty": lambda y: torch.cat([y[:, 8:], y], 1),
    "slice spatial": lambda y: y[..., 1:-1, ::2],
    "narrow": lambda y: y.narrow(1, -4, 4),
    "index": lambda y: y[:, [0, 2, 4]],
    "index spatial": lambda y: y[:, :, [0, 2]],
    "gather": lambda y: y.gather(2, torch.zeros(2, 8, 1, 8, dtype=torch.long)),
    "take": lambda y: y.take(torch.tensor([0, 5])),
    "index_add": lambda y: y.index_add(2, torch.tensor([0]), y[:, :, :1]),
    "scatter": lambda y: y.scatter(2, torch.zeros(2, 8, 1, 8, dtype=torch.long), 0.5),
    "index_fill": lambda y: y.index_fill(2, torch.tensor([1]), 0.0),
    "repeat": lambda y: y.repeat(1, 2, 1, 1),
    "repeat more": lambda y: y.repeat(2, 1, 1, 1, 1),
    "interleave": lambda y: y.repeat_interleave(2, 1),
    "interleave none": lambda y: y.repeat_interleave(2),
    "interleave t": lambda y: y.repeat_interleave(torch.tensor([1, 2]), 0),
    "tile": lambda y: y.tile(2, 1, 1),
    "expand": lambda y: y[:, :, None].expand(-1, -1, 3, -1, -1),
    "unflatten": lambda y: y.unflatten(1, (2, 4)).flatten(1, 2),
    "view0": lambda y: y.reshape(-1),
    "flatten0": lambda y: y.flatten(),
    "movedim": lambda y: y.movedim(1, -1),
    "swap": lambda y: y.swapaxes(0, 1),
    "T": lambda y: y.mT,
    "squeeze": lambda y: y.mean((2, 3), keepdim=True).squeeze(),
    "squeeze dims": lambda y: y.mean((2, 3), keepdim=True).squeeze((2, 3)),
    "unsqueeze": lambda y: y.unsqueeze(-5),
    "pad": lambda y: F.pad(y, (1, 1, 1, 1)),
    "pad chan": lambda y: F.pad(y, (0, 0, 0, 0, 1, 1)),
    "pad batch": lambda y: F.pad(y, (0, 0, 0, 0, 0, 0, 1, 0)),
    "pad circ": lambda y: F.pad(y, (1, 1, 1, 1), mode="circular"),
    "pad neg": lambda y: F.pad(y, (0, 0, 0, 0, 0, -2)),
    "shuffle": lambda y: F.channel_shuffle(y, 2),
    "pixel": lambda y: F.pixel_shuffle(y, 2),
    "unpixel": lambda y: F.pixel_unshuffle(y, 2),
    "fold": lambda y: F.fold(F.unfold(y, 3, padding=1), (8, 8), 3, padding=1),
    "unfold t": lambda y: y.unfold(2, 3, 1),
    "unfold chan": lambda y: y.unfold(1, 2, 2),
    "pool1": lambda y: F.avg_pool1d(y.flatten(2), 2),
    "pool3": lambda y: F.max_pool3d(y[:, :, None], (1, 2, 2)),
    "adapt": lambda y: F.adaptive_max_pool2d(y, 3),
    "lp": lambda y: F.lp_pool2d(y, 2, 2),
    "unpool": lambda y: F.max_unpool2d(*F.max_pool2d(y, 2, return_indices=True), 2),
    "pool unbatched": lambda y: F.max_pool2d(y[0], 2),
    "interp": lambda y: F.interpolate(y, scale_factor=2, mode="area"),
    "interp3": lambda y: F.interpolate(y[:, :, None], scale_factor=2, mode="trilinear"),
    "grid": lambda y: F.grid_sample(y, y.new_zeros(2, 4, 4, 2)),
    "affine": lambda y: F.grid_sample(y, F.affine_grid(torch.eye(2, 3).to(y)[None].expand(2, -1, -1), (2, 8, 4, 4))),
    "local": lambda y: F.local_response_norm(y, 3),
    "inst": lambda y: F.instance_norm(y),
    "group": lambda y: F.group_norm(y, 4),
    "rms": lambda y: F.rms_norm(y.movedim(1, -1), (8,)),
    "normalize": lambda y: F.normalize(y),
    "einsum": lambda y: torch.einsum("nchw,ncij->nhwij", y, y),
    "bmm": lambda y: y.flatten(2) @ y.flatten(2).mT,
    "cdist": lambda y: torch.cdist(y.flatten(2), y.flatten(2)),
    "tensordot": lambda y: torch.tensordot(y, y, ([1], [1])),
    "kron": lambda y: torch.outer(y[0, :, 0, 0], y[0, :, 0, 0]),
    "cosine": lambda y: F.cosine_similarity(y, y * 2),
    "glu": lambda y: F.glu(y, 1),
    "prelu": lambda y: F.prelu(y, y.new_ones(8)),
    "maxout": lambda y: y.view(2, 4, 2, 8, 8).amax(2),
    "softmin": lambda y: F.softmin(y, 1),
    "threshold": lambda y: F.threshold(y, 0.1, 0.0),
    "rrelu": lambda y: F.rrelu(y),
    "logsig": lambda y: F.logsigmoid(y),
    "copysign": lambda y: torch.copysign(y, y),
    "lerp": lambda y: torch.lerp(y, y * 2, 0.3),
    "addcmul": lambda y: torch.addcmul(y, y, y),
    "floor_div": lambda y: y // 2,
    "rem": lambda y: y % 0.3,
    "atan2": lambda y: torch.atan2(y, y + 1),
    "hypot": lambda y: torch.hypot(y, y),
    "xlogy": lambda y: torch.xlogy(y, y + 3),
    "complex": lambda y: torch.fft.rfft2(y).real,
    "fft chan": lambda y: torch.fft.fft(y, dim=1).real,
    "double": lambda y: y.double().float(),
    "meshgrid": lambda y: torch.meshgrid(y[0, :, 0, 0], y[0, 0, 0], indexing="ij")[0],
    "diag": lambda y: y.diagonal(0, 2, 3),
    "diag chan": lambda y: y[..., 0].diagonal(0, 1, 2),
    "tril": lambda y: y.tril(),
    "trace": lambda y: y[0, 0].trace(),
    "isfinite": lambda y: torch.isfinite(y).float() * y,
    "nan": lambda y: torch.nan_to_num(y),
    "broadcast": lambda y: torch.broadcast_tensors(y, y[:, :1])[1],
    "stack": lambda y: torch.stack([y, y], 1),
    "hstack": lambda y: torch.hstack([y, y]),
    "dstack": lambda y: torch.cat([y, y], -1),
    "cat batch": lambda y: torch.cat([y, y]),
    "cat empty": lambda y: torch.cat([y, torch.zeros(0)], 1),
    "block": lambda y: torch.cat([y, torch.ones(2, 3, 8, 8)], 1),
    "as_strided": lambda y: y.as_strided((2, 8, 4, 4), (512, 64, 16, 2)),
    "view_as_real": lambda y: torch.view_as_real(torch.view_as_complex(y.view(2, 8, 8, 4, 2).contiguous())),
}


class Formed(nn.Module):
    """Two convolutions, the operator, and a layer that reads what lies along axis 1 of its result."""

    def __init__(self, form: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.form, self.a, self.b = form, conv(3, 8), conv(8, 8)
        shape = form(torch.rand(2, 8, 8, 8)).shape
        self.c = nn.Linear(shape[1], 3) if len(shape) > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        found = self.form(self.b(self.a(x)))
        found = found if found.dtype == x.dtype else found.to(x.dtype)
        return found if self.c is None else self.c(found.movedim(1, -1))


@pytest.mark.parametrize("name", FORMS)
def test_cut_equals_silenced(name: str) -> None:
    torch.manual_seed(0)
    model, x = randomize(Formed(FORMS[name])).eval().double(), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    graph = trace(model, x)
    plan = random_plan(graph, np.random.default_rng(0), 0.5)
    with torch.no_grad():
        torch.testing.assert_close(
            apply(model, graph, plan)(x), silenced_output(model, graph, plan, x), rtol=1e-6, atol=1e-9
        )
