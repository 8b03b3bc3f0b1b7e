"""Ctrl-C at random moments of every use of a backend. Run as a script: prints how many uses were struck.

python struck.py BACKEND ONNX FOLDER SEED
"""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pydeploy.backends.base import open_backend
from pydeploy.profiling.profile import profile, random_feeds

EACH = 6


def struck(use: Callable[[], object], longest_s: float) -> None:
    """One real SIGINT to this process at a random moment of `use`, or just after it."""
    timer = threading.Timer(random.uniform(0.0, longest_s), os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        use()
        while True:
            time.sleep(0.01)
    except KeyboardInterrupt:
        timer.join()


def main(name: str, onnx: Path, folder: Path, seed: int) -> None:
    random.seed(seed)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background may ignore it
    count = 0

    def strike(use: Callable[[], object]) -> None:
        nonlocal count
        start = time.monotonic()
        use()
        longest_s = 1.1 * (time.monotonic() - start)
        for _ in range(EACH):
            struck(use, longest_s)
            count += 1

    def open_once() -> None:
        with backend.open(engine):
            pass

    backend = open_backend(name, threads=2)
    engine = backend.build(onnx, folder / "net.engine")
    strike(lambda: open_backend(name, threads=1))
    strike(lambda: backend.build(onnx, folder / "again.engine"))
    strike(open_once)
    with backend.open(engine) as session:
        feeds = random_feeds(session.inputs)
        strike(lambda: session.run(feeds))
        strike(lambda: session.time(feeds, 50))
        strike(lambda: session.layers(feeds, 5))
        strike(lambda: profile(backend, engine, rounds=1, runs=5))
        assert session.run(feeds), "still works"
    several = [open_backend(name, threads=1 + index) for index in range(3)]
    built = [one.build(onnx, folder / f"several{index}.engine") for index, one in enumerate(several)]
    assert built
    while several:
        several.pop(0)  # first come, first gone
        gc.collect()
        strike(gc.collect)
    left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    assert not left, f"left behind: {left}"
    print(f"struck {count} times")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
