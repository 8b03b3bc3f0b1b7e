"""Writes docs/figures/trace-speed.md: `trace` + `apply` beside Torch-Pruning's build + step on every classification model of torchvision.

    python bench/trace_zoo.py --work runs/trace_zoo.json --for 280       # goes on where it stopped; an otherwise idle computer

Both sides run in turns in one process on the same weights and input (1 x 3 x 224 x 224), one thread of PyTorch, until three rounds
or a second of one side have passed; medians. A model that has its row is not run again.
"""

from __future__ import annotations

import argparse
import copy
import json
import signal
import statistics
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torchvision

from pydeploy.files import write_json, write_text

sys.path[:0] = [
    str(Path(__file__).parent),
    str(Path(__file__).parent.parent / "tests" / "prune"),
]  # for bench_trace and its oracle
ENOUGH_S = 1.0
LIMIT_S = 120
"""Torch-Pruning gets no further than this on a model: on maxvit_t its memory grows without an end."""
LARGE = (
    "regnet_y_128gf",
    "swin_v2_s",
    "swin_v2_t",
    "vit_h_14",
    "vit_l_16",
    "vit_l_32",
    "densenet161",
    "densenet169",
    "densenet201",
)
"""To build them or to run the other side takes longest, so they come last."""
HEAD = """# How long the structure analysis takes

`trace` + `apply` beside Torch-Pruning's build + step at ratio 0.5 on every classification model of torchvision, written by
`python bench/trace_zoo.py`. Both sides run in turns in one process on the same weights and input (1 x 3 x 224 x 224), with one thread of
PyTorch; medians of up to three rounds, one where a round takes a second.
"""


@contextmanager
def limited() -> Iterator[None]:
    """Raises `TimeoutError` inside the block when it takes longer than `LIMIT_S`."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"no result within {LIMIT_S} s")

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)


def row(name: str) -> dict[str, Any]:
    """Median seconds of both sides, or why Torch-Pruning has none."""
    from bench_trace import built, ours, theirs, timed

    model, example = built(name)
    last = [m for m in model.modules() if getattr(m, "out_features", getattr(m, "out_channels", 0)) == 1000]
    mine: list[float] = []
    other: list[float] = []
    while len(mine) < 3 and max(sum(mine), sum(other)) < ENOUGH_S:
        mine.append(timed(lambda: ours(model, example))[0])
        twin, layers = copy.deepcopy((model, last))
        try:
            with limited():
                other.append(timed(lambda twin=twin, layers=layers: theirs(twin, example, layers))[0])
        except Exception as error:
            return {"pydeploy_s": statistics.median(mine), "fails": f"{type(error).__name__}: {error}"[:90]}
    return {"pydeploy_s": statistics.median(mine), "torch_pruning_s": statistics.median(other)}


def page(rows: dict[str, dict[str, Any]], names: list[str]) -> str:
    both = {name: (r["pydeploy_s"], r["torch_pruning_s"]) for name, r in rows.items() if "torch_pruning_s" in r}
    mine, other = sum(pair[0] for pair in both.values()), sum(pair[1] for pair in both.values())
    slower = ", ".join(name for name, (a, b) in both.items() if a > 2 * b) or "none"
    about = (
        f"{len(rows)} of {len(names)} models were run, and Torch-Pruning can do {len(both)} of them. On these `trace` + `apply` take "
        f"{mine:.1f} s together,\nTorch-Pruning's build + step {other:.1f} s: a share of {mine / max(other, 1e-9):.3f}. "
        f"Slower than twice Torch-Pruning: {slower}."
    )
    lines = [HEAD, about, "", "| model | trace + apply, s | Torch-Pruning, s | times faster |", "|---|---|---|---|"]
    for name in (name for name in names if name in rows):
        seconds = f"{rows[name]['pydeploy_s']:.3f}"
        beside = f"{both[name][1]:.3f} | {both[name][1] / both[name][0]:.1f}" if name in both else "|"
        if name not in both:
            beside = f"fails: {rows[name]['fails'].splitlines()[0].replace('|', '/')} |"
        lines.append(f"| {name} | {seconds} | {beside} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/trace_zoo.json"), help="file of the rows")
    parser.add_argument("--out", type=Path, default=Path("docs/figures/trace-speed.md"))
    parser.add_argument(
        "--for", type=float, default=float("inf"), dest="window", help="begin no model after so many seconds"
    )
    asked = parser.parse_args()
    end = time.monotonic() + asked.window
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    names = torchvision.models.list_models(module=torchvision.models)
    rows: dict[str, dict[str, Any]] = json.loads(asked.work.read_text()) if asked.work.is_file() else {}
    asked.work.parent.mkdir(parents=True, exist_ok=True)
    row("resnet18")  # what only the first run pays
    for name in sorted(names, key=lambda name: name in LARGE):
        if name not in rows and time.monotonic() < end:
            rows[name] = row(name)
            write_json(asked.work, rows)
            sys.stderr.write(f"{name}: {rows[name]}\n")
    if rows:
        write_text(asked.out, page(rows, names))


if __name__ == "__main__":
    main()
