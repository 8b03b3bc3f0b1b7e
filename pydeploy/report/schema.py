"""The machine form of a report, ``report.json``: typed, checked when built and when loaded.

* Latencies are in microseconds, sizes in bytes, durations in seconds; what networks are judged by is a number of `Report.metric`.
* Everything derived (speed-up, prediction error) is a property or a function, never a second copy in the file.
* NumPy scalars become plain numbers; NaN and infinity are refused, because JSON has neither.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from pydeploy.errors import DataError
from pydeploy.files import read_json, write_json
from pydeploy.report.schema_errors import in_words
from pydeploy.report.versions import of_version_1
from pydeploy.tasks.metric import Metric, MetricTable
from pydeploy.timing.ratio import Ratio, of_limit, ratio
from pydeploy.timing.records import Target, Timing, Turn

SCHEMA = 2
"""Version of the file's form; raised when a reader of the old form could misread the new one. Version 1 is read as well."""

EngineName = Literal["dense", "pruned", "unquantized", "half", "quantized", "mixed"]
MODELS: tuple[EngineName, ...] = ("dense", "pruned", "unquantized", "half", "quantized", "mixed")
"""Names of the run's own engines, from the least changed to the most changed."""

_CHECKED = ConfigDict(extra="forbid", allow_inf_nan=False)

Micros = Annotated[float, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]


def _all_facts(value: Any, of: type[Any]) -> Any:
    """Refuse a record with keys that its class lacks; pydantic alone would drop them."""
    if isinstance(value, Mapping):
        unknown = sorted(set(value) - {field.name for field in fields(of)})
        if unknown:
            raise ValueError(f"unknown key{'s' if len(unknown) > 1 else ''} {', '.join(map(repr, unknown))}")
    return value


@dataclass(frozen=True, slots=True, config=_CHECKED)
class Latency:
    """Distribution of a whole network's time in microseconds; `disturbed` as in `Timing`."""

    median: Annotated[float, Field(gt=0)]
    p10: Micros
    p90: Micros
    n: Annotated[int, Field(ge=1)]
    disturbed: bool = False
    turns: tuple[Turn, ...] = ()
    """What each round of the final comparison says, by which engines are divided (`ratio_to`); empty in older reports."""
    interval: Annotated[float, Field(ge=0)] | None = None
    """Half the width of the median's 95 % confidence interval, relative to the median; None in older reports."""

    @classmethod
    def of(cls, timing: Timing) -> Latency:
        """The report's form of a `Timing`."""
        return cls(timing.median_us, timing.p10_us, timing.p90_us, timing.n, timing.disturbed, timing.turns,
                   timing.interval)  # fmt: skip

    def ratio_to(self, other: Latency) -> Ratio:
        """How many times as long as `other`, by the rounds of the final comparison."""
        return ratio(self._timing, other._timing)

    def share_of(self, limit_us: float) -> Ratio:
        """The share of a latency that was not measured; without an interval where the report holds none."""
        taken = of_limit(self._timing, limit_us)
        return taken if self.interval is not None else replace(taken, low=None, high=None, rounds=0)

    @property
    def _timing(self) -> Timing:
        return Timing(self.n, self.median, self.p10, self.p90, self.disturbed, self.interval or 0.0, turns=self.turns)

    @model_validator(mode="after")
    def _ordered(self) -> Latency:
        if not self.p10 <= self.median <= self.p90:
            raise ValueError(f"p10, median, p90 must ascend, got {self.p10}, {self.median}, {self.p90}")
        return self


@dataclass(frozen=True, slots=True, kw_only=True, config=_CHECKED)
class ModelResult:
    """One built engine of this run. `value`, of the report's metric, was measured on the engine over `samples` test samples."""

    latency_us: Latency
    value: float
    samples: Annotated[int, Field(ge=1)]
    params: Count
    macs: Count
    bytes: Count
    """Size of the engine file."""
    onnx_bytes: Count
    precision: str
    target: str
    """`Target.fingerprint` of what it was measured on."""
    tables: dict[str, MetricTable] = Field(default_factory=dict)
    """What explains the value: those of each class, a confusion matrix."""


@dataclass(frozen=True, slots=True, kw_only=True, config=_CHECKED)
class Models:
    """The run's engines; the pruned network in other precisions where they were asked for and the backend has them."""

    dense: ModelResult
    pruned: ModelResult
    unquantized: ModelResult | None = None
    """The pruned network in float, where the target and so `dense` and `pruned` are INT8."""
    half: ModelResult | None = None
    """The same file in fp16 or bf16."""
    quantized: ModelResult | None = None
    """INT8 wherever possible."""
    mixed: ModelResult | None = None
    """INT8 for some layers only; None where that would be all of them, or none."""

    @property
    def present(self) -> dict[EngineName, ModelResult]:
        """The engines that exist, by name, in the order of `MODELS`."""
        found: dict[EngineName, ModelResult | None] = {name: getattr(self, name) for name in MODELS}
        return {name: result for name, result in found.items() if result is not None}


@dataclass(frozen=True, slots=True, kw_only=True, config=_CHECKED)
class Candidate:
    """A further measured point for the comparison: another budget, or another method on the same work."""

    name: str
    method: str
    precision: str
    latency_us: Latency
    value: float
    """Of the report's metric."""
    params: Count
    macs: Count
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, config=_CHECKED)
class Round:
    """One plan that was built and measured; the first round has one, the others have up to three."""

    number: Annotated[int, Field(ge=1)] = 1
    predicted_us: Annotated[float, Field(gt=0)]
    measured_us: Annotated[float, Field(gt=0)]
    met: bool
    widths: dict[str, int] | None = None
    limit_us: Annotated[float, Field(gt=0)] | None = None
    """The budget at the speed of that round; None in older reports."""
    disturbed: bool = False
    """True when other load was noticed whenever the plan was measured, so that `met` proves nothing."""

    @property
    def error(self) -> float:
        """Signed relative error of the prediction, ``predicted / measured - 1``."""
        return self.predicted_us / self.measured_us - 1


@dataclass(frozen=True, slots=True, kw_only=True, config=_CHECKED)
class Layer:
    """One operator before and after; times are medians in the running network, None where the runtime tells none."""

    name: str
    kind: str
    cin_before: Count
    cin_after: Count
    cout_before: Count
    cout_after: Count
    before_us: Micros | None = None
    after_us: Micros | None = None


@dataclass(frozen=True, slots=True, kw_only=True, config=_CHECKED)
class GroupWidth:
    """Channels of one group before and after; `frozen` says why it may not be pruned ('' = it may)."""

    name: str
    before: Count
    after: Count
    frozen: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, config=_CHECKED)
class Shown:
    """One test sample as the dense and the recommended engine see it, from left to right in one picture."""

    index: Count
    """In the test set."""
    file: str
    """Picture, relative to the report's folder."""
    said: dict[str, str]
    """What each engine says of it, in words."""


@dataclass(frozen=True, slots=True, kw_only=True, config=_CHECKED)
class TableFacts:
    """How the latency table was made."""

    probes: Count
    keys: Count
    seconds: Seconds
    disturbed: Count = 0
    """Probe networks of which there is no measurement but under other load."""


@dataclass(frozen=True, slots=True, kw_only=True, config=_CHECKED)
class Recommendation:
    """The engine to ship, one of `MODELS`, and why."""

    model: EngineName
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True, config=_CHECKED)
class Report:
    """All that a run found out."""

    schema: Literal[2] = 2
    pydeploy_version: str
    created: str
    """UTC, ISO 8601."""
    command: str
    config: dict[str, Any]
    seed: int
    task: str
    metric: Annotated[Metric, BeforeValidator(partial(_all_facts, of=Metric))]
    """What networks are judged by."""
    model: str
    target: Annotated[Target, BeforeValidator(partial(_all_facts, of=Target))]
    budget_us: Annotated[float, Field(gt=0)]
    budget_share: Annotated[float, Field(gt=0)] | None = None
    """The budget as a share of the dense engine's latency; None where it was asked for in microseconds, and in older reports."""
    dense_us: Annotated[float, Field(gt=0)]
    """Median of the dense engine when the budget was set; `models.dense` is timed beside the final engines."""
    met: bool
    """Whether `used` of the pruned engine is at most 1."""
    models: Models
    recommendation: Recommendation
    candidates: tuple[Candidate, ...] = ()
    rounds: tuple[Round, ...] = ()
    layers: tuple[Layer, ...] = ()
    groups: tuple[GroupWidth, ...] = ()
    table: TableFacts | None = None
    seconds: dict[str, Seconds] = Field(default_factory=dict)
    """Duration of each stage, in the order the stages ran."""
    total_seconds: Seconds = 0.0
    warnings: tuple[str, ...] = ()
    preprocessing: dict[str, Any] | None = None
    """How pictures become the engines' inputs (``preprocessing.json``); None for other tasks."""
    shipped: str = ""
    """Folder of the engine to ship, in the run directory; '' in older reports."""
    calibration: str = ""
    """The samples that INT8 ranges come from, in words, with their hash; '' where nothing was calibrated."""

    samples: tuple[Shown, ...] = ()
    """Test samples with what engines say of them."""

    @model_validator(mode="after")
    def _recommends_what_exists(self) -> Report:
        if self.recommendation.model not in self.models.present:
            raise ValueError(f"recommends '{self.recommendation.model}', which the report has no measurement of")
        return self

    @model_validator(mode="after")
    def _values_of_its_metric(self) -> Report:
        results: dict[str, ModelResult | Candidate] = {
            f"models.{name}": one for name, one in self.models.present.items()
        }
        results |= {f"candidates.{index}": one for index, one in enumerate(self.candidates)}
        for place, one in results.items():
            if self.metric.share and not 0 <= one.value <= 1:
                raise ValueError(f"'{place}.value' must lie in [0, 1], as shares do, got {one.value}")
        return self

    @model_validator(mode="after")
    def _met_by_its_rounds(self) -> Report:
        used = self.used(self.models.pruned)
        if used.rounds and self.met != (used.value <= 1):
            raise ValueError(f"'met' is {self.met}, but the pruned engine takes {used.value:.6g} of the budget")
        return self

    def used(self, result: ModelResult) -> Ratio:
        """The share of the budget that an engine takes: the one rule by which a budget is met, in every rendering."""
        if self.budget_share is None:
            return result.latency_us.share_of(self.budget_us)
        return result.latency_us.ratio_to(self.models.dense.latency_us).scaled(1 / self.budget_share)

    def within(self, result: ModelResult) -> bool:
        """Whether an engine takes at most the budget; of older reports, which hold no rounds, `met` is what the rounds said."""
        used = self.used(result)
        return self.met if result is self.models.pruned and not used.rounds else used.value <= 1

    @property
    def prediction_error(self) -> float | None:
        """Relative prediction error of the last round, without sign; None before the first round."""
        return abs(self.rounds[-1].error) if self.rounds else None

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries, lists, strings and numbers."""
        data: dict[str, Any] = _ADAPTER.dump_python(self, mode="json")
        return data

    @classmethod
    def from_json(cls, data: Any) -> Report:
        """The report in `data`; raises `DataError` naming each missing, unknown or wrong entry."""
        found = data.get("schema") if isinstance(data, dict) else None
        if found == 1 and type(found) is int:
            data, found = of_version_1(data), SCHEMA
        if found != SCHEMA:
            raise DataError(f"not a report of schema {SCHEMA} (schema: {found!r}); write it again with this version")
        try:
            return _ADAPTER.validate_json(json.dumps(data), strict=True)
        except ValidationError as error:
            raise DataError(f"not a valid report: {in_words(error)}; write it again with 'pydeploy run'") from None

    def save(self, path: Path) -> None:
        """Write ``report.json`` atomically."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> Report:
        """The checked report at `path`; raises `DataError` that names the file."""
        try:
            return cls.from_json(read_json(path))
        except DataError as error:
            raise error if str(path) in str(error) else DataError(f"{path}: {error}") from None


_ADAPTER: TypeAdapter[Report] = TypeAdapter(Report)
