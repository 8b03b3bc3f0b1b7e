"""YAML → checked settings. Sections are in execution order; an unknown key or name is refused with the nearest known one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from pydeploy.data.named import PLACES
from pydeploy.data.shipped import find
from pydeploy.errors import ConfigError, DeployError
from pydeploy.files import joined, read_yaml
from pydeploy.planning.rounds import HEADROOM, ROUNDS
from pydeploy.settings import (
    Number,
    Place,
    Positive,
    Settings,
    Share,
    Whole,
    folder_of,
    from_here,
    open_name,
    placed,
    sentences,
)
from pydeploy.train.settings import FinetuneSettings, TrainSettings

CRITERIA = "pydeploy.prune.criteria:CRITERIA"
Criterion = Annotated[str, open_name(CRITERIA)]
Observer = Annotated[str, open_name("pydeploy.quant.observe:OBSERVERS")]
TaskName = Annotated[str, open_name("pydeploy.tasks.named:TASKS")]
ModelName = Annotated[str, open_name("pydeploy.models.named:MODELS")]
OWN_TASKS = ("classification", "segmentation", "detection", "inspection")


def _beside(value: object, folder: Path) -> object:
    """A path, or a list of them, relative to the config's folder; what is none is not for us to judge."""
    if isinstance(value, list):
        return [_beside(one, folder) for one in value]
    return str(joined(folder, Path(value))) if isinstance(value, str) else value


class TaskSection(Settings):
    """What is learned and on which data; `options` go to the task as they are."""

    name: TaskName = "classification"
    """`classification`, one of an installed package, or your own as `FILE.py:CLASS`."""
    data: str | None = None
    """Name of the data set; by default the task's own choice."""
    options: dict[str, Any] = Field(default_factory=dict)
    """For pydeploy's own tasks also those of the data set; `root` and `cache` there are relative to the config."""

    @model_validator(mode="after")
    def _placed(self, info: ValidationInfo) -> TaskSection:
        if self.name in OWN_TASKS:
            for key in PLACES:
                if (value := self.options.get(key)) is not None and value != "memory":
                    self.options[key] = _beside(value, folder_of(info))
        return self


class ModelSection(Settings):
    """What builds the network, and the arguments of that factory."""

    name: ModelName
    """`pydeploy:NAME`, `torchvision:NAME`, `timm:NAME`, `smp:NAME`, or your own as `FILE.py:FACTORY` or `PACKAGE.MODULE:FACTORY`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the factory; `in_channels` and `classes` come from the data; `cfg` of `ssd_cfg` is relative to the config."""
    weights: Place | None = None
    """Where training starts, and without a section `train` the trained model: safetensors, a state dict or a checkpoint (.pth, .pt)."""
    strict: bool = True
    """Whether every tensor must be in the file and fit; if not, what fits is taken."""

    @property
    def cfg(self) -> Path | None:
        """The file that `ssd_cfg` reads; None for other models."""
        found = self.options.get("cfg") if self.name.removeprefix("pydeploy:") == "ssd_cfg" else None
        return Path(found) if isinstance(found, str) else None

    @model_validator(mode="after")
    def _placed(self, info: ValidationInfo) -> ModelSection:
        if self.cfg is not None:
            self.options["cfg"] = _beside(str(self.cfg), folder_of(info))
        return self


class TargetSection(Settings):
    """What the engine must be fast on."""

    backend: str = "onnxruntime"
    """`onnxruntime`, `openvino`, `tensorrt`, `null` (analytic, for tests), or your own as `FILE.py:CLASS`."""
    precision: Literal["fp32", "tf32", "fp16", "bf16", "int8"] = "fp32"
    """With int8, all engines of the search are int8 ones, calibrated as `quantize` says; so are the dense one and the budget."""
    batch: Positive = 1
    """Samples an inference."""
    threads: Annotated[Whole, Field(ge=0)] = 0
    """0: all cores that the process may use."""
    options: str = ""
    """For TensorRT, such as ``sparse,dla_core=0``."""

    @field_validator("backend", mode="before")
    @classmethod
    def _null_is_a_name(cls, value: object) -> object:
        """YAML reads a bare ``null`` as nothing; here it is the name of the analytic backend."""
        return "null" if value is None else value

    @field_validator("backend")
    @classmethod
    def _backend_placed(cls, name: str, info: ValidationInfo) -> str:
        """The file of a backend of one's own is relative to the config."""
        return placed("pydeploy.backends.base:NAMES", name, info)


class TableSection(Settings):
    """How much is measured for the latency table."""

    points: Annotated[Whole, Field(ge=2, le=31)] = 7
    """Widths that are measured of a group."""
    align: Positive | None = None
    """Widths are multiples of this; by default what suits the target."""
    rounds: Positive = 5
    """Turns of each probe."""
    runs: Positive = 20
    """Inferences a turn."""


class PruneSection(Settings):
    """Which channels go. `budget` is a share of the dense engine's latency, `budget_us` an absolute one."""

    criterion: Criterion = "taylor"
    """A name (``pydeploy criteria`` lists them), your own as ``FILE.py:FUNCTION``, or one of an installed package."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The criterion's own, and ``fallback``, the criterion of groups that it cannot judge."""
    batches: Positive = 20
    """Batches that a criterion which looks at data is given."""
    batch_size: Positive = 256
    """Samples of such a batch."""
    budget: Share | None = None
    """Share of the dense engine's latency."""
    budget_us: Annotated[Number, Field(gt=0)] | None = None
    """The same in microseconds; give one of the two."""
    headroom: Annotated[Number, Field(ge=0, lt=0.5)] = HEADROOM
    """The solver aims this share below the budget, because two builds of one plan differ by a few percent."""
    rounds: Positive = ROUNDS
    """How often plans are built and measured at most."""
    min_width: Positive = 1
    """Channels that every group keeps at least."""

    @model_validator(mode="after")
    def _one_budget(self) -> PruneSection:
        if (self.budget is None) == (self.budget_us is None):
            raise ValueError("give exactly one of 'budget' (share of dense) and 'budget_us'")
        return self

    @field_validator("options")
    @classmethod
    def _fallback_placed(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """The fallback's file is relative to the config, as the criterion's."""
        fallback = options.get("fallback")
        return {**options, "fallback": placed(CRITERIA, fallback, info)} if isinstance(fallback, str) else options

    @model_validator(mode="after")
    def _known_options(self) -> PruneSection:
        from pydeploy.prune.criteria.score import chosen

        try:
            chosen(self.criterion, self.options)
        except DeployError as error:
            raise ValueError(f"options: {error}") from None
        return self


class QuantizeSection(Settings):
    """INT8 of the fine-tuned model, calibrated on the manifest's images."""

    observer: Observer = "mse"
    """From values to an interval: `mse`, `entropy`, `percentile`, `moving_average`, `minmax`, or your own as `FILE.py:FUNCTION`."""
    calibration: Place = Path("fashion_mnist")
    """Manifest of the calibration samples: a file, or a name that `pydeploy configs` lists."""
    exclude: list[str] = Field(default_factory=list)
    """Layers that stay in float; names or patterns."""
    table: Place | None = None
    """Latency table of this network in the other precision (int8; for an int8 target, what int8 leaves in float), for the
    choice of layers in mixed precision. Without it, both engines are profiled."""


class CompareSection(Settings):
    """Further points for the report, each fine-tuned like the main plan and measured beside it."""

    budgets: list[Share] = Field(default_factory=list)
    """Further budgets, as shares of the dense latency."""
    uniform: list[Share] = Field(default_factory=list)
    """Shares of the dense latency at which uniform widths are fitted."""
    global_threshold: list[Share] = Field(default_factory=list)
    """The same for one threshold over all channels' scores, widths rounded to 8."""
    halp: list[Share] = Field(default_factory=list)
    """The same for HALP's plans (`pydeploy.planning.baselines.halp`)."""
    torch_pruning: list[Annotated[Number, Field(gt=0, lt=1)]] = Field(default_factory=list)
    """Channel ratios for Torch-Pruning's global L1 rounded to 16; skipped with a note where it is not installed."""
    limit: Annotated[Number, Field(ge=0)] = 1.0
    """What a recommended engine may lose of the metric against dense: points for a share such as accuracy, else its unit."""

    @field_validator("budgets", "uniform", "global_threshold", "halp", "torch_pruning")
    @classmethod
    def _each_once(cls, strengths: list[float]) -> list[float]:
        texts = [f"{strength:g}" for strength in strengths]
        if twice := sorted({text for text in texts if texts.count(text) > 1}):
            raise ValueError(f"names {twice[0]} twice (six digits count)")
        return strengths


class Config(Settings):
    """Everything that `pydeploy run` needs."""

    seed: Annotated[Whole, Field(ge=0, lt=2**63)] = 0
    """Of everything that is drawn at random."""
    track: str | None = None
    """What accelerate writes curves of training with, such as `tensorboard`, into the training's folder. No result depends on it."""
    task: TaskSection = TaskSection()
    model: ModelSection
    train: TrainSettings = TrainSettings()
    target: TargetSection = TargetSection()
    table: TableSection = TableSection()
    prune: PruneSection
    finetune: FinetuneSettings = FinetuneSettings()
    quantize: QuantizeSection | None = None
    compare: CompareSection = CompareSection()

    @property
    def trains(self) -> bool:
        """Whether the dense model is trained: unless there is no section `train` and it has weights or is not pydeploy's own."""
        from pydeploy.models import MODELS

        own = self.model.name.removeprefix("pydeploy:") in MODELS
        return "train" in self.model_fields_set or (own and self.model.weights is None)

    def to_json(self) -> dict[str, Any]:
        """What `parse` takes; a section `train` only where there is training."""
        return self.model_dump(mode="json", exclude=set() if self.trains else {"train"})

    @model_validator(mode="after")
    def _int8_needs_samples(self) -> Config:
        if self.target.precision == "int8" and self.quantize is None:
            raise ValueError("target.precision is int8, which needs a section 'quantize' with calibration samples")
        return self

    @model_validator(mode="after")
    def _cfg_says_what_is_quantized(self) -> Config:
        """Layers that the cfg of a detector keeps out of INT8 are excluded by name, like those of the config."""
        if self.quantize is not None and self.model.cfg is not None:
            from pydeploy.models.detection.cfg import read

            try:
                own = read(self.model.cfg).float_layers
            except DeployError as error:
                raise ValueError(str(error)) from None
            self.quantize.exclude[:] = dict.fromkeys([*self.quantize.exclude, *own])
        return self


def load(path: Path | str, overrides: Sequence[str] | Mapping[str, Any] = (), *, folder: Path | None = None) -> Config:
    """The checked settings of a YAML file after ``section.key=value`` overrides, or what `overridden` made of them.

    Paths in it are relative to `folder`, by default to that of the file; those in `overrides` to the current folder.
    Raises `ConfigError` naming the file, the key and what was expected.
    """
    path = find("configs", path)
    data = read_yaml(path, "config", "pass a file, or a name that 'pydeploy configs' lists")
    values = overrides if isinstance(overrides, Mapping) else overridden(overrides)
    for key, value in values.items():
        _override(data, key, value)
    return parse(data, str(path), path.parent if folder is None else folder)


def overridden(texts: Sequence[str]) -> dict[str, Any]:
    """``section.key=value`` texts as values by key, paths among them made absolute. Raises `ConfigError`."""
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"--set takes section.key=value, got '{text}'")
        try:
            found[key] = from_here(Config, key, yaml.safe_load(value))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ConfigError(f"--set {text}: the value is not YAML: {error}") from None
    return found


def parse(data: Mapping[str, Any], source: str, folder: Path = Path()) -> Config:
    """The checked settings of a mapping; `source` names it in errors, `folder` is what paths in it are relative to."""
    try:
        return Config.model_validate(data, context={"folder": folder})
    except ValidationError as error:
        raise ConfigError("\n".join(f"{source}: {text}" for text in sentences(error, Config))) from None


def _override(data: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    place: Any = data
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise ConfigError(f"--set {key}: '{section}' is a value, not a section")
    place[last] = value
