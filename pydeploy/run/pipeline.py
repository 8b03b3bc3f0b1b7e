"""The whole story, in order: a config in, a run directory with a measured engine and its report out.

    train -> trace -> score -> measure -> [solve -> cut -> export -> build -> profile -> correct]* -> fine-tune
          -> export -> build -> calibrate -> quantize -> mix -> build -> compare -> profile -> report

`stages_of` is the table: what each stage reads of the config, which stages it comes after, and the function that makes it.
Each leaves its files in its own folder, stamped with what it read (`pydeploy.run.folder`), so that a run can be resumed,
explained before it starts (`foresee`), and made stage by stage, in any process (`run_stage`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydeploy import settings
from pydeploy.errors import ConfigError, DataError, nearest
from pydeploy.files import write_json
from pydeploy.planning.rounds import Budget
from pydeploy.run import config as configs
from pydeploy.run import preflight
from pydeploy.run.artefacts import Artefacts
from pydeploy.run.checks import check_structure
from pydeploy.run.config import Config
from pydeploy.run.earlier import Earlier
from pydeploy.run.folder import Console, RunFolder, Verdict, check_reuse
from pydeploy.run.job import Job, open_job
from pydeploy.run.overrides import keep
from pydeploy.run.preflight import duration
from pydeploy.run.stages import comparison, final, judging, reduced_precision, scoring, search, table, training
from pydeploy.run.stages import engines as engine_stages

Make = Callable[[Job, Artefacts, Path], None]
"""``make(job, artefacts, folder)`` leaves a stage's files in its folder."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a run. `reads` names settings, or sections with all their settings; `after` the stages whose files it reads."""

    name: str
    reads: tuple[str, ...]
    after: tuple[str, ...]
    make: Make


NETWORK = ("task", "model.name", "model.options")
"""Of stages that build the network."""
CALIBRATION = ("quantize.observer", "quantize.calibration", "quantize.exclude")
SEARCH = ("prune.headroom", "prune.rounds", "prune.min_width")


def stages_of(job: Job) -> tuple[Stage, ...]:
    """The stages of a run, in order."""
    config, int8 = job.config, job.backend.precision == "int8"
    guest = _guest_reads(job)
    engine = (*NETWORK, "target", *((*CALIBRATION, *guest["calibration"]) if int8 else ()))
    narrow = ("quantize.exclude",) if int8 else ()
    start = ("seed", "model.weights", "model.strict", "model.trained")
    learned: tuple[str, ...] = ("train.weights",) if config.train.weights is not None else start
    learned += ("train",) if config.trains and config.train.weights is None else ()
    planned = ("02_graph", "03_scores", "04_dense", "05_table")
    judged = [
        Stage(f"{folder[:2]}_judged", guest["judged"], (folder,), make)
        for folder, make in (("04_dense", judging.judge_dense), ("08_pruned", judging.judge_pruned))
        if guest["judged"]
    ]
    common = (
        Stage("01_train", (*NETWORK, *learned), (), training.train),
        Stage("02_graph", NETWORK, ("01_train",), scoring.trace),
        Stage("03_scores", (*NETWORK, "seed", "prune.criterion", "prune.options", "prune.batches", "prune.batch_size",
                             *guest["scores"]),
              ("01_train", "02_graph"), scoring.score),
        Stage("04_dense", engine, ("01_train",), engine_stages.build_dense),
        *judged[:1],
        Stage("05_table", ("target", "table", "prune.min_width", *narrow), ("02_graph", "04_dense"), table.measure_table),
        Stage("06_search", (*NETWORK, "target", "prune.budget", "prune.budget_us", *SEARCH, *narrow),
              ("01_train", *planned), search.search_plan),
        Stage("07_finetune", (*NETWORK, "seed", "finetune", *guest["finetune"]), ("01_train", "02_graph", "06_search"),
              training.finetune_plan),
        Stage("08_pruned", engine, ("07_finetune",), engine_stages.build_pruned),
        *judged[1:],
    )  # fmt: skip
    further = (*_precisions(job), *_points(job, engine))
    measured = tuple(
        stage.name
        for stage in (*common, *further)
        if stage.name.startswith(("04", "08", "09", "10")) and not stage.name.endswith("_judged")
    )
    lists = tuple(f"compare.{key}" for key in settings.keys(Config, ["compare"]) if key != "limit")
    profile = Stage("11_profile", ("target", *lists), ("02_graph", "05_table", *measured), final.measure_all)
    return (*common, *further, profile)


def _guest_reads(job: Job) -> dict[str, tuple[str, ...]]:
    """What stages read of a program's own functions and data, by what they do."""
    if job.guest is None:
        return {"scores": (), "finetune": (), "calibration": (), "judged": ()}
    named = isinstance(job.guest.scores, str)
    return {"scores": ("guest.loss", "guest.data") if named else ("guest.scores",), "finetune": ("guest.finetune",),
            "calibration": ("guest.data",),
            "judged": ("guest.evaluate",) if job.guest.evaluate is not None else ("guest.evaluate", "guest.data")}  # fmt: skip


def _precisions(job: Job) -> Iterator[Stage]:
    """The fine-tuned network in other precisions."""
    config = job.config
    if config.quantize is None or job.guest is not None:
        return
    reads = ("task", "target")
    if job.backend.precision == "int8":
        other = Stage("09_unquantized", reads, ("08_pruned",), reduced_precision.unquantize)
    else:
        other = Stage("09_quantized", (*reads, *CALIBRATION), ("08_pruned",), reduced_precision.quantize)
    yield other
    mixing = ("quantize.calibration", "quantize.exclude", "quantize.table", "compare.limit")
    tables = ("05_table", "06_search") if config.quantize.table is not None else ()
    yield Stage(
        "09_mixed", (*reads, *mixing), ("02_graph", "04_dense", *tables, "08_pruned", other.name), reduced_precision.mix
    )
    if reduced_precision.half_backend(job) is not None:
        yield Stage("09_half", reads, ("08_pruned",), reduced_precision.build_half)


def _points(job: Job, engine: tuple[str, ...]) -> Iterator[Stage]:
    """Further points of the comparison; each one's strength is part of its name."""
    for point in comparison.wanted(job.config):
        planned = ("02_graph", "03_scores", "04_dense", "05_table") if point.method != "torch-pruning" else ()
        searching = SEARCH if point.method in comparison.PLANNERS else ()
        yield Stage(f"10_{point.slug}", (*engine, "seed", "finetune", *searching), ("01_train", *planned),
                    partial(comparison.make, point=point))  # fmt: skip


def run(
    config: Config, out: Path, console: Console, *, resume: bool = False, reuse: Path | None = None, command: str = "",
    overrides: Mapping[str, Any] | None = None, slim: bool = False,
) -> Path:  # fmt: skip
    """Run every stage of `config` into the folder `out`; returns the path of ``report.html``.

    With `resume`, finished stages whose inputs are unchanged are kept. Finished stages of the run `reuse` with the
    same inputs are copied, so that a second target need not train the dense model again. `overrides` are what ``--set``
    changed of the config, noted for the next ``--resume``. With `slim`, files that are only needed to go on are deleted at
    the end (`RunFolder.slim`), unless other load disturbed what was measured.

    What can be found wrong in seconds is tried first, and about how long the stages take is told.
    """
    job = open_job(config, console)
    folder, at = _open(job, out, console, resume=resume, reuse=reuse), Artefacts(out)
    check_structure(job)
    _try_first(job, folder)
    write_json(at.config, config.to_json())
    keep(out, overrides or {})
    make_stages(job, at, folder)
    page = final.write_report(job, at, folder.seconds, command)
    if slim:
        _slim(job, at, folder)
    return page


TRIED = ("01_train", "04_dense", "07_finetune")
"""Stages whose faults `preflight.attempt` finds."""


def _try_first(job: Job, folder: RunFolder) -> None:
    """What would fail later is tried now, unless the stages that would fail are finished; the time that is left is told."""
    verdicts = _foreseen(job, folder)
    new = [stage.name for stage, verdict in verdicts if not verdict.stays]
    if set(TRIED).isdisjoint(new):
        return
    told = preflight.estimates(job, preflight.attempt(job), [stage.name for stage, _ in verdicts])
    left = {name: told[name] for name in new}
    longest = sorted(left, key=lambda name: -left[name])[:3]
    job.console.say(f"checked; about {duration(sum(left.values()))} on a machine that does nothing else, most of it "
                    f"{', '.join(f'{name} {duration(left[name])}' for name in longest)}")  # fmt: skip


def _foreseen(job: Job, folder: RunFolder) -> list[tuple[Stage, Verdict]]:
    return [(stage, folder.foresee(stage.name, job.settings(stage.reads), stage.after, _defaults()))
            for stage in stages_of(job)]  # fmt: skip


def _slim(job: Job, at: Artefacts, folder: RunFolder) -> None:
    if why := doubted(job, at):
        job.console.say(f"all files are kept: {'; '.join(why.values())}; measure again with --resume")
    else:
        job.console.say(f"{folder.slim() / 1e6:.1f} MB of files deleted that are only needed to go on")


def check(config: Config, console: Console) -> dict[str, float]:
    """Try in seconds what a run of `config` needs; returns about how many seconds each of its stages takes.

    Raises a `DeployError` that says what will not work: names, files, data, a training step, an export, a build, the metrics.
    """
    job = open_job(config, console)
    check_structure(job)
    return preflight.estimates(job, preflight.attempt(job), [stage.name for stage in stages_of(job)])


def make_stages(job: Job, at: Artefacts, folder: RunFolder) -> None:
    """Make every stage of `job` whose finished result does not stay."""
    folder.doubted = doubted(job, at)
    if folder.slimmed:
        again = [(stage.name, verdict.why) for stage, verdict in _foreseen(job, folder) if not verdict.stays]
        if again:
            raise ConfigError(f"files that {again[0][0]} needs were deleted with --slim, and it would have to be made again "
                              f"({again[0][1]}); choose another folder with --out, and take the trained network with "
                              f"--reuse {at.root}")  # fmt: skip
    for stage in stages_of(job):
        folder.stage(stage.name, job.settings(stage.reads), partial(stage.make, job, at), stage.after, _defaults())


def _open(job: Job, out: Path, console: Console, *, resume: bool, reuse: Path | None) -> RunFolder:
    earlier = Earlier(job, [root for root in (out, reuse) if root is not None])
    return RunFolder.open(out, console, resume=resume, reuse=reuse, earlier=earlier)


def doubted(job: Job, at: Artefacts) -> dict[str, str]:
    """Finished stages that prove nothing, because other load disturbed what they measured."""
    prune = job.config.prune
    found = {"11_profile": "other load disturbed it"} if final.disturbed(at) else {}
    if final.misled(at, Budget(prune.budget, prune.budget_us)):
        found["06_search"] = "other load disturbed the search, and the engine misses the budget"
    return found


@cache
def _defaults() -> Mapping[str, Any]:
    return {**settings.defaults(Config), "model.trained": False}


def foresee(
    config: Config, out: Path | None, console: Console, *, reuse: Path | None = None
) -> list[tuple[Stage, Verdict]]:
    """Every stage of a run into `out` (None: a new folder), and whether a finished result stays. Nothing is written.

    Raises `ConfigError` where `reuse` is no run directory, as `run` does.
    """
    check_reuse(reuse)
    job = open_job(config, console)
    with TemporaryDirectory(prefix="pydeploy-") as empty:
        root = out if out is not None else Path(empty)
        earlier = Earlier(job, [folder for folder in (root, reuse) if folder is not None])
        return _foreseen(job, RunFolder(root, console, reuse, earlier, doubted(job, Artefacts(root))))


def run_stage(out: Path, name: str, console: Console) -> Path:
    """Make one stage of the run that was begun in `out`, from its files alone; returns the stage's folder.

    Raises `DataError` where a stage before it is not finished.
    """
    at = Artefacts(out)
    job = open_job(configs.load(at.config, folder=Path()), console)
    folder, table_ = RunFolder(out, console, earlier=Earlier(job, [out])), stages_of(job)
    known = {stage.name: stage for stage in table_}
    if name not in known:
        raise ConfigError(f"the run has no stage '{name}'{nearest(name, known)}")
    for stage in table_[: list(known).index(name)]:
        verdict = folder.foresee(stage.name, job.settings(stage.reads), stage.after, _defaults())
        if stage.name in known[name].after and not verdict.stays:
            raise DataError(f"{name} reads the files of {stage.name}, which has to be made first: {verdict.why}")
    stage = known[name]
    return folder.stage(name, job.settings(stage.reads), partial(stage.make, job, at), stage.after, _defaults())
