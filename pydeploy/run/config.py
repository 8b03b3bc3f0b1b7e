"""YAML → checked settings. Sections are in execution order; an unknown key or name is refused with the nearest known one."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from pydeploy.errors import ConfigError, nearest
from pydeploy.files import read_yaml


def _no_truth_value(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("should be a number, not yes or no")
    return value


Whole = Annotated[int, BeforeValidator(_no_truth_value)]
Number = Annotated[float, BeforeValidator(_no_truth_value)]
Share = Annotated[Number, Field(gt=0, le=1)]
Positive = Annotated[Whole, Field(ge=1)]


def _name_in(kind: str, registry: str) -> AfterValidator:
    """Refuses a name that is not in the mapping ``module:attribute``, which is imported for the first name only."""

    def check(name: str) -> str:
        module, _, attribute = registry.partition(":")
        known: Mapping[str, Any] = getattr(importlib.import_module(module), attribute)
        if name not in known:
            raise ValueError(f"unknown {kind} '{name}'{nearest(name, known)}")
        return name

    return AfterValidator(check)


Criterion = Annotated[str, _name_in("criterion", "pydeploy.prune.criteria.score:CRITERIA")]
Observer = Annotated[str, _name_in("observer", "pydeploy.quant.observe:OBSERVERS")]
Schedule = Annotated[str, _name_in("schedule", "pydeploy.train.settings:SCHEDULES")]
DistillLoss = Annotated[str, _name_in("distillation loss", "pydeploy.train.distill.logits:LOSSES")]
TaskName = Annotated[str, _name_in("task", "pydeploy.tasks.contract:TASKS")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TaskSection(_Section):
    """What is learned and on which data; `options` go to the task as they are."""

    name: TaskName = "classification"
    data: str = "fashion_mnist"
    options: dict[str, Any] = {}


class ModelSection(_Section):
    """A name of the model zoo and the arguments of its factory."""

    name: str
    options: dict[str, Any] = {}


class DistillSection(_Section):
    """Distillation from the dense model: weight `alpha` of the teacher's term, `temperature` of its softmax."""

    loss: DistillLoss = "logits"
    alpha: Annotated[Number, Field(ge=0, le=1)] = 0.7
    temperature: Annotated[Number, Field(gt=0)] = 4.0


class FitSection(_Section):
    """One training run: SGD with Nesterov momentum; the learning rate rises to `lr`, then falls along `schedule`."""

    epochs: Positive = 5
    batch_size: Positive = 128
    lr: Annotated[Number, Field(gt=0)] = 0.2
    momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[Number, Field(ge=0)] = 5e-4
    warmup_epochs: Annotated[Number, Field(ge=0)] = 1.0
    schedule: Schedule = "linear"
    clip_norm: Annotated[Number, Field(ge=0)] = 0.0
    amp: Literal["auto", "bf16", "off"] = "auto"

    @model_validator(mode="before")
    @classmethod
    def _nothing_said(cls, data: Any) -> Any:
        """Earlier versions wrote the other section's key here, as null."""
        if not isinstance(data, Mapping):
            return data
        said_nothing = {key for key in ("weights", "distill") if key not in cls.model_fields and data.get(key) is None}
        return {key: value for key, value in data.items() if key not in said_nothing}

    @field_validator("amp", mode="before")
    @classmethod
    def _off_is_a_name(cls, value: object) -> object:
        """YAML reads a bare ``off`` as false."""
        return "off" if value is False else value

    @model_validator(mode="after")
    def _warmup_ends(self) -> FitSection:
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"'warmup_epochs' ({self.warmup_epochs:g}) must not exceed 'epochs' ({self.epochs})")
        return self


class TrainSection(FitSection):
    """Training of the dense model."""

    weights: Path | None = None
    """Take the tensors of this file instead of training."""


class FinetuneSection(FitSection):
    """Recovery of the cut model, with distillation from the dense one."""

    epochs: Positive = 2
    lr: Annotated[Number, Field(gt=0)] = 0.05
    warmup_epochs: Annotated[Number, Field(ge=0)] = 0.2
    distill: DistillSection | None = DistillSection()


class TargetSection(_Section):
    """What the engine must be fast on."""

    backend: str = "onnxruntime"
    precision: Literal["fp32", "tf32", "fp16", "bf16", "int8"] = "fp32"
    """With int8, all engines of the search are int8 ones, calibrated as `quantize` says; so are the dense one and the budget."""
    batch: Positive = 1
    threads: Annotated[Whole, Field(ge=0)] = 0
    options: str = ""
    """For TensorRT, such as ``sparse,dla_core=0``."""

    @field_validator("backend", mode="before")
    @classmethod
    def _null_is_a_name(cls, value: object) -> object:
        """YAML reads a bare ``null`` as nothing; here it is the name of the analytic backend."""
        return "null" if value is None else value


class TableSection(_Section):
    """How much is measured for the latency table."""

    points: Annotated[Whole, Field(ge=2, le=31)] = 7
    align: Positive | None = None
    """Widths are multiples of this; by default what suits the target."""
    rounds: Positive = 5
    runs: Positive = 20


class PruneSection(_Section):
    """Which channels go. `budget` is a share of the dense engine's latency, `budget_us` an absolute one."""

    criterion: Criterion = "taylor"
    batches: Positive = 20
    batch_size: Positive = 256
    budget: Share | None = None
    budget_us: Annotated[Number, Field(gt=0)] | None = None
    headroom: Annotated[Number, Field(ge=0, lt=0.5)] = 0.015
    """The solver aims this share below the budget, because two builds of one plan differ by a few percent."""
    rounds: Positive = 3
    min_width: Positive = 1

    @model_validator(mode="after")
    def _one_budget(self) -> PruneSection:
        if (self.budget is None) == (self.budget_us is None):
            raise ValueError("give exactly one of 'budget' (share of dense) and 'budget_us'")
        return self


class QuantizeSection(_Section):
    """INT8 of the fine-tuned model, calibrated on the manifest's images."""

    observer: Observer = "entropy"
    calibration: Path = Path("calib/fashion_mnist.yaml")
    exclude: list[str] = []
    table: Path | None = None
    """Latency table of this network in the other precision (int8; for an int8 target, what int8 leaves in float), for the
    choice of layers in mixed precision. Without it, both engines are profiled."""


class CompareSection(_Section):
    """Further points for the report, each fine-tuned like the main plan and measured beside it."""

    budgets: list[Share] = []
    uniform: list[Share] = []
    """Shares of the dense latency at which uniform widths are fitted."""
    global_threshold: list[Share] = []
    """The same for one threshold over all channels' scores, widths rounded to 8."""
    halp: list[Share] = []
    """The same for HALP's plans (`pydeploy.planning.baselines.halp`)."""
    torch_pruning: list[Annotated[Number, Field(gt=0, lt=1)]] = []
    """Channel ratios for Torch-Pruning's global L1 rounded to 16; skipped with a note where it is not installed."""
    limit: Annotated[Number, Field(ge=0)] = 1.0
    """Accuracy points below dense that a recommended engine may lose."""

    @field_validator("budgets", "uniform", "global_threshold", "halp", "torch_pruning")
    @classmethod
    def _each_once(cls, strengths: list[float]) -> list[float]:
        texts = [f"{strength:g}" for strength in strengths]
        if twice := sorted({text for text in texts if texts.count(text) > 1}):
            raise ValueError(f"names {twice[0]} twice (six digits count)")
        return strengths


class Config(_Section):
    """Everything that `pydeploy run` needs."""

    seed: Annotated[Whole, Field(ge=0, lt=2**63)] = 0
    task: TaskSection = TaskSection()
    model: ModelSection
    train: TrainSection = TrainSection()
    target: TargetSection = TargetSection()
    table: TableSection = TableSection()
    prune: PruneSection
    finetune: FinetuneSection = FinetuneSection()
    quantize: QuantizeSection | None = None
    compare: CompareSection = CompareSection()

    @model_validator(mode="after")
    def _int8_needs_samples(self) -> Config:
        if self.target.precision == "int8" and self.quantize is None:
            raise ValueError("target.precision is int8, which needs a section 'quantize' with calibration samples")
        return self


def load(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """The checked settings of a YAML file after ``section.key=value`` overrides.

    Raises `ConfigError` naming the file, the key and what was expected.
    """
    path = Path(path)
    data = read_yaml(path, "config", "pass one of the files under configs/")
    for text in overrides:
        _override(data, text)
    return parse(data, str(path))


def parse(data: Mapping[str, Any], source: str) -> Config:
    """The checked settings of a mapping; `source` names it in errors."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{source}: {_sentence(item)}" for item in error.errors())) from None


def _override(data: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"--set takes section.key=value, got '{text}'")
    *sections, last = key.split(".")
    place: Any = data
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise ConfigError(f"--set {text}: '{section}' is a value, not a section")
    try:
        place[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text}: the value is not YAML: {error}") from None


def _sentence(item: Any) -> str:
    """One validation problem in words, with the nearest known key for an unknown one."""
    where = [str(part) for part in item["loc"]]
    name = ".".join(where)
    if item["type"] == "extra_forbidden":
        homes = [section for section in Config.model_fields if section != where[0] and where[-1] in _known([section])]
        elsewhere = f"; section '{homes[0]}' has a key of this name" if len(where) == 2 and homes else ""
        return f"unknown key '{name}'{nearest(where[-1], _known(where[:-1]))}{elsewhere}"
    if item["type"] == "missing":
        return f"key '{name}' is required"
    text = item["msg"].removeprefix("Value error, ")
    given = item.get("input")
    shown = "" if isinstance(given, dict) or item["type"] == "value_error" else f", got {given!r}"
    return f"'{name}': {text}{shown}" if name else text


def _known(sections: Sequence[str]) -> list[str]:
    """Keys of the section at this path; none where it is a value."""
    model: type[BaseModel] = Config
    for section in sections:
        annotation: Any = model.model_fields[section].annotation
        choices = [annotation, *getattr(annotation, "__args__", ())]
        found = next((c for c in choices if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if found is None:
            return []
        model = found
    return list(model.model_fields)
