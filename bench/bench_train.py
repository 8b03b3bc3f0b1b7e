"""One training step of ResNet-20 (width 32, bf16 where the CPU has it), with and without `keep_freed_memory`."""

from __future__ import annotations

import math
import multiprocessing
from multiprocessing.connection import Connection

import pytest

BATCH = 128


def serve(connection: Connection, keep: bool) -> None:
    """Do a step for every message; the C library's settings hold for a process, so each way needs its own."""
    import torch

    from pydeploy.models import build
    from pydeploy.train.memory import keep_freed_memory

    kept = keep_freed_memory() if keep else False
    torch.manual_seed(0)
    model = build("resnet20", width=32, in_channels=1).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.randn(BATCH, 1, 28, 28), torch.randint(0, 10, (BATCH,))
    while connection.recv() == "step":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        connection.send((loss.item(), kept))


@pytest.mark.benchmark(group="training step, batch 128: memory kept or given back")
@pytest.mark.parametrize("keep", [True, False], ids=["kept", "given back (glibc's default)"])
def test_step(benchmark, keep):
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, keep))
    process.start()

    def step():
        ours.send("step")
        return ours.recv()

    try:
        loss, kept = benchmark.pedantic(step, rounds=10, warmup_rounds=3)
    finally:
        ours.send("stop")
        process.join()
    assert math.isfinite(loss)
    assert kept == keep
