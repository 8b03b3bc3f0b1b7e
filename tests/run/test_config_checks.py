"""Everything in a config is checked before any work starts: every key, every name, every number, every file."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from pydeploy.errors import ConfigError, DeployError
from pydeploy.quant.observe import OBSERVERS
from pydeploy.run.config import Config, load, parse
from pydeploy.run.pipeline import run
from pydeploy.settings import open_names
from quiet import Quiet

ROOT = Path(__file__).parents[2]
# torch's ONNX exporter and accelerate warn about their own internals.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

WHOLE: dict[str, Any] = {
    "seed": 1,
    "task": {"name": "classification", "data": "synthetic",
             "options": {"data_settings": {"size": 12, "train_size": 64, "test_size": 32},
                         "augmentation": {"pad": 1, "flip": "random", "cutout": 1}, "label_smoothing": 0.1}},
    "model": {"name": "resnet8", "options": {"width": 8}},
    "train": {"epochs": 2, "batch_size": 32, "lr": 0.1, "momentum": 0.8, "weight_decay": 1e-4, "warmup_epochs": 0.5,
              "schedule": "cosine", "clip_norm": 1.0, "amp": "off",
              "milestones": [0.5], "gamma": 0.2, "accumulate": 2, "ema": 0.5, "keep": "best", "patience": 3,
              "sparsity": {"kind": "slimming", "rate": 1e-3, "schedule": "linear", "layers": "normal", "cost": "memory", "rescale": 0.5,
                           "target": 0.4}},
    "target": {"backend": "null", "precision": "fp32", "batch": 1, "threads": 1},
    "table": {"points": 2, "align": 4, "rounds": 1, "runs": 3},
    "prune": {"criterion": "l1", "options": {"fallback": "random"}, "batches": 2, "batch_size": 32, "budget": 0.7,
              "headroom": 0.02, "rounds": 2, "min_width": 2},
    "finetune": {"epochs": 1, "batch_size": 32, "lr": 0.05, "momentum": 0.8, "weight_decay": 1e-4, "warmup_epochs": 0.5,
                 "schedule": "cosine", "clip_norm": 1.0, "amp": "off",
                 "milestones": [0.5], "gamma": 0.2, "accumulate": 2, "ema": 0.5, "keep": "best", "patience": 3,
                 "distill": {"loss": "logits", "alpha": 0.5, "temperature": 2.0}},
    "quantize": {"observer": "minmax", "calibration": str(ROOT / "calib" / "smoke.yaml"), "exclude": ["fc"]},
    "compare": {"budgets": [0.8], "uniform": [0.8], "global_threshold": [0.8], "halp": [0.8], "torch_pruning": [0.5],
                "limit": 2.0},
}  # fmt: skip


def changed(path: str, value: Any) -> dict[str, Any]:
    """The whole config with one setting changed, by its dotted path."""
    data = copy.deepcopy(WHOLE)
    *sections, last = path.split(".")
    place = data
    for section in sections:
        place = place.setdefault(section, {})
    place[last] = value
    return data


def keys(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of the config's schema with its annotation, sections inside sections included."""
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if inner is None:
            yield prefix + name, field.annotation
        else:
            yield from keys(inner, f"{prefix}{name}.")


def test_the_whole_config_names_every_key() -> None:
    """What the tests here walk is the schema; 'weights', 'table', 'options' and 'budget_us' are set where they are tested."""
    parse(WHOLE, "test")
    given = {key for key, _ in keys() if _at(WHOLE, key) is not None}
    missing = {"track", "model.weights", "model.strict", "train.weights", "train.sparsity.table", "quantize.table", "target.options",
               "prune.budget_us"}  # fmt: skip
    assert {key for key, _ in keys()} - given == missing


def _at(data: Any, path: str) -> Any:
    for part in path.split("."):
        data = data.get(part) if isinstance(data, dict) else None
    return data


@pytest.mark.parametrize("key", [key for key, _ in keys()])
def test_a_misspelt_key_is_refused_with_the_right_one(key: str) -> None:
    section, _, last = key.rpartition(".")
    wrong = f"{section}.{last}s" if section else f"{last}s"
    with pytest.raises(ConfigError, match=rf"unknown key '{wrong}'.*{last}"):
        parse(changed(wrong, 1), "test")


NUMBERS = [
    key
    for key, kind in keys()
    if {int, float} & {kind, *get_args(kind), *(a for k in get_args(kind) for a in get_args(k))}
]


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("wrong", [-1, True, "many", float("nan"), float("inf"), [1, "x"]], ids=repr)
def test_a_wrong_number_is_refused(key: str, wrong: Any) -> None:
    section = key.split(".")[0]
    value = [wrong] if isinstance(_at(WHOLE, key), list) and not isinstance(wrong, list) else wrong
    with pytest.raises(ConfigError, match=section):
        parse(changed(key, value), "test")


def test_there_are_numbers() -> None:
    assert {"seed", "train.lr", "prune.budget_us", "compare.halp", "table.align"} <= set(NUMBERS)
    assert len(NUMBERS) >= 36


NAMES = {
    "task.name": ("clasification", "did you mean 'classification'"),
    "task.data": ("sinthetic", "did you mean 'synthetic'"),
    "task.options.label_smothing": (0.1, "no setting 'label_smothing' .did you mean 'label_smoothing'"),
    "task.options.label_smoothing": ("much", "label_smoothing.*valid number, got 'much'"),
    "task.options.data": ("digits", "'data' is given by task.data"),
    "task.options.model": ("resnet20", "'model' is given by model.name"),
    "task.options.model_settings": ({"width": 4}, "'model_settings' is given by model.options"),
    "task.options.data_settings.sise": (8, "no setting 'sise' .did you mean 'size'"),
    "task.options.data_settings.size": ("large", "'size' of data set 'synthetic'.*got 'large'"),
    "task.options.augmentation.flipp": ("random", "augmentation.flipp' .did you mean 'flip'"),
    "task.options.augmentation.flip": ("randm", "did you mean 'random'"),
    "model.name": ("resnet9", "did you mean 'resnet8'"),
    "model.weights": ("dense.pth", "dense.pth does not exist"),
    "model.strict": ("maybe", "'model.strict'.*valid boolean"),
    "model.options.widht": (8, "no setting 'widht' .did you mean 'width'"),
    "model.options.width": ("wide", "'width' of model 'resnet8' must be a positive integer, got 'wide'"),
    "train.schedule": ("cosin", "'train.schedule': unknown schedule 'cosin' .did you mean 'cosine'"),
    "track": ("tensorbord", "unknown tracker 'tensorbord' .did you mean 'tensorboard'"),
    "train.keep": ("bets", "'train.keep'.*'last' or 'best'.*did you mean 'best'"),
    "finetune.keep": ("first", "'finetune.keep'.*'last' or 'best'"),
    "train.amp": ("bf61", "'train.amp'.*'auto', 'bf16' or 'off'"),
    "train.sparsity.kind": ("sliming", "'train.sparsity.kind'.*did you mean 'slimming'"),
    "train.sparsity.schedule": ("linea", "did you mean 'linear'"),
    "train.sparsity.layers": ("norml", "did you mean 'normal'"),
    "train.sparsity.cost": ("memry", "did you mean 'memory'"),
    "train.weights": ("dense.safetensor", "dense.safetensor does not exist"),
    "train.warmup_epochs": (3, r"'warmup_epochs' \(3\) must not exceed 'epochs' \(2\)"),
    "train.batch_size": (65, "train.batch_size is 65, the data set has 64 training samples"),
    "train.distill": ({"alpha": 0.5}, "unknown key 'train.distill'.*section 'finetune' has"),
    "finetune.weights": ("x.safetensors", "unknown key 'finetune.weights'.*sections 'model' and 'train' have"),
    "finetune.schedule": ("lineer", "'finetune.schedule': unknown schedule 'lineer' .did you mean 'linear'"),
    "finetune.amp": ("on", "'finetune.amp'.*'auto', 'bf16' or 'off'"),
    "finetune.warmup_epochs": (2, r"'warmup_epochs' \(2\) must not exceed 'epochs' \(1\)"),
    "finetune.batch_size": (65, "finetune.batch_size is 65, the data set has 64 training samples"),
    "finetune.distill.loss": (
        "logit",
        "'finetune.distill.loss': unknown distillation loss 'logit' .did you mean 'logits'",
    ),
    "target.backend": ("nul", "did you mean 'null'"),
    "target.precision": ("int4", "'target.precision'.*'int8'"),
    "target": ({"backend": "null", "precision": "fp16"}, "backend 'null' computes .*'fp16' was asked for"),
    "target.options": ("sparse", "backend 'null' has no options"),
    "prune.criterion": ("tailor", "unknown criterion 'tailor' .did you mean 'taylor'"),
    "prune.options": ({"fallback": "taylr"}, "options: unknown criterion 'taylr' .did you mean 'taylor'"),
    "prune.options.fallbak": ("l1", "options: criterion 'l1': no option 'fallbak' .did you mean 'fallback'"),
    "prune.batch_size": (65, "prune.batch_size is 65, the data set has 64 training samples"),
    "prune.min_width": (64, "prune.min_width is 64 and the widest group of channels that may be pruned has 32"),
    "quantize.observer": ("entropi", "unknown observer 'entropi' .did you mean 'entropy'"),
    "quantize.calibration": ("calib/smoky.yaml", "calib/smoky.yaml does not exist"),
    "quantize.exclude": (["fcc"], "cannot exclude 'fcc'.*did you mean 'fc'"),
    "quantize.table": ("none.sqlite", "none.sqlite"),
    "train.sparsity": ({"kind": "ista", "cost": "latency", "table": "none.sqlite"}, "none.sqlite"),
    "train.sparsity.table": ("none.sqlite", "cost latency and a table go together"),
    "compare.budgets": ([0.5, 0.5000000001], "'compare.budgets': names 0.5 twice"),
}
"""A wrong value for everything that names something, and what the error says."""


@pytest.mark.parametrize("key", NAMES)
def test_a_wrong_name_is_refused_before_any_work(key: str, tmp_path: Path) -> None:
    wrong, text = NAMES[key]
    console = Quiet()
    with pytest.raises(DeployError, match=text):
        run(parse(changed(key, wrong), "test"), tmp_path / "out", console)
    assert not list(tmp_path.rglob("started.json"))
    assert not console.lines


OPEN = sorted(open_names(parse(WHOLE, "test")))
"""Settings that take a user's code."""
CODE = "def mine(*args, **settings): raise KeyError('x')\nnumber = 3\n"
WRONG = {
    "mine.py:mien": "has no function 'mien' .did you mean 'mine'",
    "mien.py:mine": "mien.py does not exist",
    "mine.py:number": "has no function 'number'",
    "mine.py": "unknown .* 'mine.py'",
    "mine.py:": "has no function ''",
    "broken.py:mine": "broken.py cannot be run: SyntaxError",
    "failing.py:mine": "failing.py cannot be run: ZeroDivisionError",
    "no_such_package.module:mine": "no_such_package",
    "no_such_name": "unknown .* 'no_such_name'",
}
"""What a user may write wrongly instead of mine.py:mine."""


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("key", OPEN)
def test_wrong_names_of_ones_own_code_are_refused_before_any_work(key: str, wrong: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "broken.py").write_text("def mine(:")
    (tmp_path / "failing.py").write_text("1 / 0")
    with pytest.raises(ConfigError, match=WRONG[wrong]) as caught:
        parse(changed(key, wrong), "test", tmp_path)
    assert "\n" not in str(caught.value)
    assert key in str(caught.value)


@pytest.mark.parametrize("key", ["task.name", "model.name"])
def test_code_that_fails_is_one_sentence_before_any_work(key: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    with pytest.raises(ConfigError, match=r"mine.py:mine cannot be built with .*KeyError: 'x'"):
        run(parse(changed(key, "mine.py:mine"), "test", tmp_path), tmp_path / "out", Quiet())
    assert not list(tmp_path.rglob("started.json"))


def test_paths_are_relative_to_the_config_and_those_of_set_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("configs", "here"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(f"def mine(seen, levels): return '{folder}'")
    (tmp_path / "configs" / "c.yaml").write_text(
        json.dumps(changed("quantize", {"observer": "mine.py:mine", "calibration": "sets/a.yaml"}))
    )
    monkeypatch.chdir(tmp_path / "here")
    for path in (Path("../configs/c.yaml"), tmp_path / "configs" / "c.yaml"):
        plain = load(path).quantize
        assert plain is not None
        assert OBSERVERS[plain.observer](None, 0) == "configs"  # type: ignore[arg-type, comparison-overlap]
        assert plain.calibration.absolute().resolve() == tmp_path / "configs" / "sets" / "a.yaml"
        found = load(path, ["quantize.observer=mine.py:mine", "quantize.calibration=sets/a.yaml"]).quantize
        assert found is not None
        assert OBSERVERS[found.observer](None, 0) == "here"  # type: ignore[arg-type, comparison-overlap]
        assert found.calibration == tmp_path / "here" / "sets" / "a.yaml"


NOT_NAMES = {"seed", "model.options", "task.options"} | set(NUMBERS)


def test_no_named_setting_is_left_out() -> None:
    assert {key for key, _ in keys()} - NOT_NAMES <= set(NAMES)


def test_layers_that_exist_but_never_hold_int8_cannot_be_excluded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot exclude"):
        run(parse(changed("quantize.exclude", ["node_relu"]), "test"), tmp_path / "out", Quiet())


def test_a_weights_file_of_another_network_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "dense.safetensors").write_bytes(b"no tensors")
    with pytest.raises(DeployError, match=r"dense\.safetensors"):
        run(parse(changed("train.weights", str(tmp_path / "dense.safetensors")), "test"), tmp_path / "out", Quiet())
    assert not list(tmp_path.rglob("started.json"))


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    from pydeploy.run.config import load

    (tmp_path / "c.yaml").write_text("model: {name: resnet8}\nprune: {budget: 0.5, budget: 0.3}\n")
    with pytest.raises(ConfigError, match="key 'budget' is given twice"):
        load(tmp_path / "c.yaml")


def test_a_config_of_an_earlier_run_is_still_read() -> None:
    """Earlier versions wrote 'train.distill' and 'finetune.weights', which had no effect, as null."""
    data = json.loads(parse(WHOLE, "test").model_dump_json())
    old = copy.deepcopy(data)
    old["train"]["distill"] = None
    old["finetune"]["weights"] = None
    assert parse(old, "config.json") == parse(data, "config.json")
