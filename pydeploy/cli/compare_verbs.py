"""``pydeploy compare``: whether two engines say the same, and which is faster. Needs no torch but for --config."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from pydeploy.cli.arguments import Json

if TYPE_CHECKING:
    from pydeploy.backends.base import Backend, Engine, Feeds, Session
    from pydeploy.profiling.compare_layers import LayerDifference
    from pydeploy.tasks.contract import Task
    from pydeploy.timing.ratio import Ratio
    from pydeploy.timing.records import Timing

COMPARE_RETRIES, COMPARE_PATIENCE_S = 30, 15.0
"""How often ``compare`` measures disturbed rounds again, and for how long."""


def compare(
    reference: Annotated[Path, typer.Argument(help="Engine file.")],
    other: Annotated[Path, typer.Argument(help="Engine file with the same inputs and outputs.")],
    feeds: Annotated[int, typer.Option(min=1, max=1_000_000, help="Batches of inputs to compare on.")] = 8,
    data: Annotated[Optional[Path], typer.Option(help="Calibration manifest that gives the inputs.")] = None,
    config: Annotated[
        Optional[Path],
        typer.Option(help="Config whose task gives test images, or with --data its samples [default: random inputs]."),
    ] = None,
    max_ratio: Annotated[
        Optional[float],
        typer.Option(min=0, help="Most of the reference's time that the other may take; more is exit code 1."),
    ] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Compare inside as well: the first layer that differs.")
    ] = False,
    tolerance: Annotated[float, typer.Option(min=0, help="Relative difference that counts as diverged.")] = 0.05,
    onnx: Annotated[
        Optional[list[Path]],
        typer.Option(help="ONNX file of an engine; twice, in order [default: beside the engines]."),
    ] = None,
    json: Json = False,
) -> None:
    """Compare two engines: outputs on the same inputs, latency measured in turns, and with --layers where they part.

    With --max-ratio the exit code answers: 0 the other engine takes at most that share of the reference's time, 1 it takes
    more, 2 an error, also where other load disturbed so much that neither can be told.

    Example: pydeploy compare runs/demo/08_pruned/model.engine runs/demo/09_quantized/model.engine --max-ratio 1.05
    """
    from pydeploy.cli.arguments import backend_of
    from pydeploy.cli.console import show_json
    from pydeploy.errors import ConfigError
    from pydeploy.profiling.compare_layers import first_divergence
    from pydeploy.profiling.compare_outputs import compare as judge
    from pydeploy.profiling.profile import time_engines
    from pydeploy.timing.ratio import ratio

    if onnx and not layers:
        raise ConfigError("--onnx goes with --layers: the files tell where the engines' layers come from")
    if max_ratio is not None and not (0 < max_ratio < float("inf")):
        raise ConfigError(f"--max-ratio is {max_ratio:g}; expected a number above 0, such as 1.05")
    (one, first), (two, second) = backend_of(reference), backend_of(other)
    with one.open(first) as a, two.open(second) as b:
        samples = _feeds(a, one.batch, feeds, data, config)
        result = judge(a, b, samples)
    inside = _inside((one, first), (two, second), onnx or [], samples) if layers else ()
    diverged = first_divergence(inside, tolerance)
    engines = {"reference": (one, first), "other": (two, second)}
    samples_us = time_engines(engines, retries=COMPARE_RETRIES, patience_s=COMPARE_PATIENCE_S)
    times = {name: found.timing for name, found in samples_us.items()}
    taken = ratio(times["other"], times["reference"])
    if json:
        told: dict[str, Any] = {**result.to_json(), "latency": {name: timing.to_json() for name, timing in times.items()},
                                "ratio": taken.to_json()}  # fmt: skip
        if layers:
            told["layers"] = [difference.to_json() for difference in inside]
            told["first_divergence"] = None if diverged is None else diverged.layer
        if max_ratio is not None:
            told["max_ratio"] = max_ratio
        show_json(told)
    else:
        _show(result.outputs, inside if layers else None, diverged, tolerance)
        sys.stdout.write(
            f"\nreference: {times['reference']}\nother:     {times['other']}\n{verdict(taken, times['other'])}\n"
        )
    if max_ratio is not None and not within(taken, max_ratio):
        raise typer.Exit(1)


def _show(
    outputs: Sequence[Any], inside: Sequence[LayerDifference] | None, diverged: LayerDifference | None, tolerance: float
) -> None:
    from pydeploy.cli.console import show_table

    rows = [(d.output, f"{d.max_abs:.3g}", f"{d.relative_l2:.3g}", f"{d.cosine:.6f}") for d in outputs]
    show_table(("output", "max_abs", "relative_l2", "cosine"), rows)
    if inside is not None:
        sys.stdout.write("\n")
        show_table(
            ("layer", "max_abs", "relative_l2"), [(d.layer, f"{d.max_abs:.3g}", f"{d.relative_l2:.3g}") for d in inside]
        )
        where = "none" if diverged is None else f"{diverged.layer} ({diverged.relative_l2:.3g})"
        sys.stdout.write(f"first layer that differs by more than {tolerance:g}: {where}\n")


def within(taken: Ratio, most: float) -> bool:
    """Whether the measured ratio is at most `most`. Raises `DataError` where other load leaves that open."""
    from pydeploy.errors import DataError

    open_ = taken.low is None or taken.high is None or taken.low <= most <= taken.high
    if taken.disturbed and open_:
        raise DataError(f"other load disturbed the measurement: {taken} may be below or above {most:g}; compare again when the "
                        "computer is quiet")  # fmt: skip
    return taken.value <= most


def verdict(taken: Ratio, timing: Timing) -> str:
    """The last line of ``compare``: how many times as long the other engine takes, and whether that was disturbed."""
    text = f"other takes {taken.value:.3f} of the reference's time ({taken.interval}, in turns)"
    if not taken.disturbed:
        return text
    loud = sum(not turn.calm for turn in timing.turns)
    return (
        f"DISTURBED: other load was noticed in {loud} of {len(timing.turns)} rounds; {text}; "
        "compare again when the computer is quiet"
    )


def _feeds(session: Session, batch: int, count: int, data: Path | None, config: Path | None) -> list[Feeds]:
    """`count` batches at most for the inputs of `session`: random, test images of a task, or a manifest's samples.

    INT8 clips random inputs that no image reaches.
    """
    from pydeploy.data.manifest import load_manifest
    from pydeploy.errors import ConfigError
    from pydeploy.profiling.profile import random_feeds
    from pydeploy.run.config import load
    from pydeploy.run.job import open_task
    from pydeploy.tasks import samples

    names = [spec.name for spec in session.inputs]
    if data is None and config is None:
        return [random_feeds(session.inputs, seed) for seed in range(count)]
    found: Iterable[Feeds]
    if config is None:
        assert data is not None
        if len(names) != 1:
            raise ConfigError(f"the engines take inputs {names}; a manifest alone feeds one input, give --config")
        found = ({names[0]: part.copy()} for part in samples.manifest_batches(load_manifest(data), batch=batch))
    else:
        task = open_task(load(config))
        given = (
            _test_batches(task, batch * count)
            if data is None
            else samples.calibration_batches(task, load_manifest(data))
        )
        found = samples.under(names, given)
    return list(islice(samples.exact_batches(found, batch), count))


def _test_batches(task: Task, count: int) -> list[Feeds]:
    from pydeploy.tasks.evaluate import batches

    first = next(batches(task, "test", count))
    return [dict(zip(task.input_names, (tensor.numpy() for tensor in first.inputs), strict=True))]


def _inside(
    reference: tuple[Backend, Engine], other: tuple[Backend, Engine], onnx: Sequence[Path], samples: Sequence[Feeds]
) -> tuple[LayerDifference, ...]:
    """Differences layer by layer; the ONNX files are those given, or lie beside the engines."""
    from pydeploy.errors import ConfigError, DataError
    from pydeploy.profiling.compare_layers import layer_differences

    if len(onnx) not in (0, 2):
        raise ConfigError(f"give --onnx twice, for the reference and for the other engine; got {len(onnx)}")
    sides = []
    for index, (backend, engine) in enumerate((reference, other)):
        source = onnx[index] if onnx else engine.path.with_suffix(".onnx")
        if not source.is_file():
            raise DataError(f"{source} does not exist; name the ONNX files of both engines with --onnx")
        engine.require_onnx(source)
        sides.append((backend, source))
    return layer_differences(sides[0], sides[1], samples)
