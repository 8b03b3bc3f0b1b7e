"""Terminal output: results to stdout, progress to stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pydeploy.run.folder import Tick
from pydeploy.timing.records import Padding, Profile

FLAGS = {
    "unstable": "run times vary by more than 2.5 % or clocks were lowered; lock the clocks (nvidia-smi -lgc, jetson_clocks) and repeat",
    "enqueue_bound": "launching takes most of the time: the GPU waits for the host; a smaller network will hardly be faster",
}
"""What flags among a profile's conditions mean."""


class Terminal:
    """A `Console` that writes lines and progress bars to stderr; without a terminal, a line every 30 seconds."""

    def __init__(self) -> None:
        self.started = time.monotonic()

    def say(self, text: str) -> None:
        seconds = int(time.monotonic() - self.started)
        sys.stderr.write(f"[{seconds // 60:3d}:{seconds % 60:02d}] {text}\n")
        sys.stderr.flush()

    @contextmanager
    def bar(self, title: str) -> Iterator[Tick]:
        if sys.stderr.isatty():
            with _rich_bar(title) as tick:
                yield tick
        else:
            yield _Lines(self, title)


@contextmanager
def _rich_bar(title: str) -> Iterator[Tick]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[told]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None, told="")
        yield lambda done, total, told="": progress.update(task, completed=done, total=total, told=told)


class _Lines:
    """Progress for logs: now and then a line, and none for what is quick."""

    def __init__(self, terminal: Terminal, title: str) -> None:
        self.terminal, self.title, self.began = terminal, title, time.monotonic()
        self.last = self.began

    def __call__(self, done: int, total: int, told: str = "") -> None:
        now = time.monotonic()
        if now - self.last >= 30:
            self.last = now
            left = f", {(now - self.began) / done * (total - done) / 60:.0f} min left" if done else ""
            self.terminal.say(f"{self.title}: {done} of {total}{left}{', ' if told else ''}{told}")


def show_json(data: Any) -> None:
    """Machine-readable result on stdout."""
    sys.stdout.write(json.dumps(data, indent=1) + "\n")


def tell(json: bool, data: Any, text: str) -> None:
    """A verb's result on stdout: `data` as JSON where that was asked for, else `text`."""
    if json:
        show_json(data)
    else:
        sys.stdout.write(text)


def show_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Columns aligned; numbers to the right."""
    text = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in text) for i in range(len(header))]
    right = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    for row in text:
        cells = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def show_profile(found: Profile) -> None:
    """The whole network, the device's condition where the runtime tells, and every layer."""
    sys.stdout.write(f"{found.target}\nwhole network: {found.whole}\n")
    for flag, meaning in FLAGS.items():
        if found.condition.get(flag):
            sys.stdout.write(f"warning: {meaning}\n")
    if said := disturbance(found):
        sys.stdout.write(f"DISTURBED: {said}; measure again when nothing else runs\n")
    sys.stdout.write(f"layers: {_sum(found)}\n\n")
    header: tuple[str, ...] = ("layer", "median_us", "p10_us", "p90_us", "n")
    rows: list[tuple[Any, ...]] = [
        (name, round(t.median_us, 1), round(t.p10_us, 1), round(t.p90_us, 1), t.n) for name, t in found.layers.items()
    ]
    if found.padding:
        header = (*header, "channels_padded_to")
        rows = [(*row, multiples(found.padding.get(row[0], (0, 0)))) for row in rows]
    show_table(header, rows)


def disturbance(found: Profile) -> str:
    """What other load disturbed of a measured engine; '' where nothing."""
    loud = [f"{found.disturbed_layers} of {len(found.layers)} layers"] if found.disturbed_layers else []
    parts = [*(["the whole network"] if found.whole.disturbed else []), *loud]
    return f"other load disturbed {' and '.join(parts)}" if parts else ""


def _sum(found: Profile) -> str:
    """How the layers' times relate to the network's."""
    total_us, overhead_us = sum(t.median_us for t in found.layers.values()), found.condition.get("overhead_us", 0.0)
    share = f" ({total_us / found.whole.median_us:.0%} of the network)" if found.whole.median_us else ""
    less = f", {overhead_us:.1f} us that reading adds taken off each of the runtime's layers" if overhead_us else ""
    return f"{total_us:.1f} us together{share}{less}"


def multiples(padding: Padding) -> str:
    """``x4 in, x8 out``; '' where the runtime does not tell."""
    texts = [f"x{multiple} {side}" for multiple, side in zip(padding, ("in", "out"), strict=True) if multiple]
    return ", ".join(texts)
