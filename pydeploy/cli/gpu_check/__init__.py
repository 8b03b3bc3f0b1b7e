"""``pydeploy gpu-check``: what pydeploy promises on an NVIDIA GPU, tried there and told as a table.

Nothing here is needed for work: it is the acceptance test for machines that the developers do not have.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydeploy.backends.base import backend_class, open_backend
from pydeploy.backends.tensorrt.backend import TensorRt
from pydeploy.backends.tensorrt.rtx import TensorRtRtx
from pydeploy.cli.gpu_check.checked_run import CheckedRun
from pydeploy.cli.gpu_check.checks import CHECKS
from pydeploy.cli.gpu_check.promises import Broken, packages
from pydeploy.data.image_sets import find_fashion_mnist
from pydeploy.errors import ConfigError, DataError, DeployError
from pydeploy.files import write_json
from pydeploy.report import Report
from pydeploy.run.artefacts import Artefacts
from pydeploy.run.config import Config, parse
from pydeploy.run.folder import Console
from pydeploy.run.pipeline import run


@dataclass(frozen=True, slots=True)
class Check:
    """One promise: kept, broken, or (None) not applicable here."""

    name: str
    passed: bool | None
    detail: str


SYNTHETIC = {"classes": 10, "size": 28, "train_size": 60000, "test_size": 10000}
Job = Callable[[Config, Path, Console], Report]


def _whole_job(config: Config, out: Path, console: Console) -> Report:
    run(config, out, console, resume=out.exists(), command="pydeploy gpu-check")
    return Report.load(Artefacts(out).report)


def _made(job: Job, config: Config, out: Path, console: Console, made: list[Report]) -> str:
    made.append(job(config, out, console))
    return f"{made[0].total_seconds / 60:.0f} minutes"


def check_all(
    config: Config,
    out: Path,
    console: Console,
    *,
    parts: Mapping[str, str] | None = None,
    job: Job = _whole_job,
    unseen_plans: int = CheckedRun.unseen_plans,
) -> list[Check]:
    """Every check in order; ``gpu-check.json`` in `out` holds them with all facts for a bug report.

    It is written after each check: a driver that takes the process down leaves what was found before. `parts` is what the
    machine has (`Backend.checkup`), `job` makes the run; the table is tried on `unseen_plans`.
    """
    kind = backend_class(config.target.backend)
    if not issubclass(kind, TensorRt | TensorRtRtx):
        raise ConfigError(f"gpu-check is for {TensorRt.name} and {TensorRtRtx.name}, got target.backend={kind.name}")
    parts = kind.checkup() if parts is None else parts
    facts: dict[str, Any] = {"schema": 1, "machine": dict(parts)}
    checks: list[Check] = []

    def passes(name: str, check: Callable[[], str | None]) -> bool:
        checks.append(checked(name, check))
        write_json(out / "gpu-check.json", {**facts, "checks": [asdict(check) for check in checks]})
        return bool(checks[-1].passed)

    if not passes("GPU and packages", partial(packages, parts)):
        return checks
    config = with_data(config, console)
    console.say("run the whole job; this takes most of the time")
    made: list[Report] = []
    passes("the whole job runs", partial(_made, job, config, out / "run", console, made))
    if made:
        backend = open_backend(config.target.backend, precision=config.target.precision, batch=config.target.batch,
                               options=config.target.options)  # fmt: skip
        assert isinstance(backend, TensorRt | TensorRtRtx)
        facts |= {"target": backend.target().to_json(), "report": made[0].to_json()}
        run = CheckedRun(config, Artefacts(out / "run"), made[0], backend, out, facts, unseen_plans)
        for name, check in CHECKS.items():
            console.say(f"check: {name}")
            passes(name, partial(check, run))
    return checks


def with_data(config: Config, console: Console) -> Config:
    """`config`; where it wants Fashion-MNIST and that cannot be had, with synthetic pictures of the same size and number."""
    if config.task.data != "fashion_mnist":
        return config
    try:
        find_fashion_mnist()
    except DataError as error:
        console.say(f"synthetic pictures instead: {error}")
    else:
        return config
    data = config.to_json()
    data["task"] |= {"data": "synthetic", "options": {"data_settings": SYNTHETIC}}
    if data["quantize"] is not None:
        data["quantize"]["calibration"] = "smoke"
    return parse(data, "gpu-check")


def checked(name: str, check: Callable[[], str | None]) -> Check:
    """What a check found; whatever goes wrong in it is told, too."""
    try:
        detail = check()
    except (Broken, DeployError) as error:
        return Check(name, passed=False, detail=str(error))
    except Exception as error:  # whatever it is, the other checks and the file for the bug report still matter
        return Check(name, passed=False, detail=f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
    return Check(
        name, passed=None if detail is None else True, detail=detail or "does not apply to this version or run"
    )
