"""The registry is open: users' criteria get what their signatures ask for, and errors say what to do."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import zoo
from pydeploy.errors import ConfigError, DataError, DeployError
from pydeploy.prune.criteria import CRITERIA
from pydeploy.prune.criteria.score import score
from pydeploy.prune.structure.trace import trace

X = torch.zeros(zoo.SHAPE)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target)


def batches(count: int = 2) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(4, *zoo.SHAPE[1:], generator=generator), torch.randint(0, 3, (4,), generator=generator))
            for _ in range(count)]  # fmt: skip


def written(folder: Path, text: str) -> str:
    (folder / "mine.py").write_text("import numpy as np\n" + text)
    return f"{folder / 'mine.py'}:score"


def scored(folder: Path, text: str, **given: Any) -> Any:
    model = zoo.build("residual")
    return score(model, trace(model, X), written(folder, text), **given)


def test_a_function_of_a_group(tmp_path: Path) -> None:
    found = scored(tmp_path, "def score(group, *, power: float = 1.0):\n    return abs(group.filters[0].rows() ** power).sum(1)",
                   options={"power": 2})  # fmt: skip
    model = zoo.build("residual")
    np.testing.assert_allclose(found["stem.0"], model.stem[0].weight.detach().square().sum((1, 2, 3)), rtol=1e-6)


def test_a_criterion_may_look_at_the_batches_twice(tmp_path: Path) -> None:
    """Also where they come from an iterator, which gives each batch once."""
    text = """
def score(groups, gradients, graph, generator):
    first = [target.tolist() for _, target in gradients]
    again = [target.tolist() for _, target in gradients]
    assert first == again and len(first) == 2 and set(groups) == {g.name for g in graph.prunable}
    return {name: generator.random(group.width) for name, group in groups.items()}
"""
    whole = scored(tmp_path, text, data=batches(), loss=loss, seed=3)
    once = scored(tmp_path, text, data=iter(batches()), loss=loss, seed=3)
    assert all(np.array_equal(whole[name], once[name]) for name in whole)


WRONG: dict[str, tuple[str, type[DeployError], str]] = {
    "needs what there is not": ("def score(group, gradient): pass", ConfigError, "'gradient', which .* .did you mean 'gradients'"),
    "scores nothing": ("def score(graph): pass", ConfigError, "must take 'group', 'groups' or"),
    "an option without a default": ("def score(group, *, power): pass", ConfigError, "option 'power' .* needs a default"),
    "fails": ("def score(group): return 1 / 0", ConfigError, r"mine.py:score' fails: ZeroDivisionError.*mine.py, line 2"),
    "of another length": ("def score(group): return np.ones(3)", ConfigError, r"gives shape \[3\] for group 'stem.0', expected \[8\]"),
    "no numbers": ("def score(group): return ['a'] * group.width", ConfigError, "gives no numbers for group"),
    "NaN": ("def score(group): return np.full(group.width, np.nan)", DataError, "gives NaN or infinity for group"),
    "no mapping": ("def score(groups): return 1", ConfigError, "returns int; expected {group: scores}"),
    "another group": ("def score(groups): return {'stem.1': [1]}", ConfigError, "scores 'stem.1', no such group .did you mean 'stem.0'"),
    "cannot judge": ("def score(group): return None", DataError, "cannot judge group 'stem.0': set its option 'fallback'"),
    "no function": ("score = 3", ConfigError, "has no function 'score'"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_in_one_sentence(case: str, tmp_path: Path) -> None:
    text, kind, said = WRONG[case]
    with pytest.raises(kind, match=said):
        scored(tmp_path, text)


def test_options_are_checked_against_the_signature(tmp_path: Path) -> None:
    text = """from typing import Literal
def score(group, *, power: float = 1.0, how: Literal['sum', 'max'] = 'sum'): return np.ones(group.width)"""
    with pytest.raises(ConfigError, match=r"no option 'powr' .did you mean 'power'"):
        scored(tmp_path, text, options={"powr": 2})
    with pytest.raises(ConfigError, match=r"'power' of criterion .* should be a valid number, got 'two'"):
        scored(tmp_path, text, options={"power": "two"})
    with pytest.raises(ConfigError, match=r"'how' of criterion .* 'sum' or 'max', got 'min'"):
        scored(tmp_path, text, options={"how": "min"})
    with pytest.raises(ConfigError, match="needs labelled batches"):
        scored(tmp_path, "def score(group, gradients): pass", data=batches())
    with pytest.raises(ConfigError, match=r"'fallback' .* names a criterion, got 3"):
        scored(tmp_path, text, options={"fallback": 3})


def test_a_fallback_scores_what_cannot_be_judged() -> None:
    model = zoo.build("plain")
    graph = trace(model, X)
    with pytest.raises(DataError, match=r"needs a batch norm on every group; 'head.1' has none.*fallback"):
        score(model, graph, "bn_scale")
    own = score(nn.Sequential(model.body), trace(nn.Sequential(model.body), X), "bn_scale")
    both = score(model, graph, "bn_scale", options={"fallback": "l1"})
    np.testing.assert_array_equal(both["body.0"], own["0.0"])
    l1 = score(model, graph, "l1")["head.1"]
    np.testing.assert_allclose(both["head.1"] / both["head.1"].mean(), l1 / l1.mean(), rtol=1e-5)


def test_entry_points_of_installed_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_package.py").write_text("def ones(group):\n    import numpy\n    return numpy.arange(group.width)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    points = EntryPoints(
        [
            EntryPoint("ones", "a_package:ones", "pydeploy.criteria"),
            EntryPoint("none", "nowhere:f", "pydeploy.criteria"),
        ]
    )
    monkeypatch.setattr("pydeploy.guests.names.entry_points", lambda *, group: points.select(group=group))
    model = zoo.build("residual")
    assert score(model, trace(model, X), "ones")["stem.0"].tolist() == list(range(8))
    with pytest.raises(ConfigError, match=r"'onse' .did you mean 'ones'"):
        CRITERIA.find("onse")
    with pytest.raises(
        ConfigError,
        match=r"criterion 'none' of an installed package cannot be loaded: module nowhere cannot be imported: ModuleNotFoundError",
    ):
        CRITERIA.find("none")
    sys.modules.pop("a_package", None)


def test_every_criterion_says_what_it_is() -> None:
    for name, criterion in CRITERIA.known.items():
        assert criterion.function.__doc__, name
        assert criterion.source or name == "random"
        assert criterion.takes or name == "random"


@pytest.mark.parametrize("name", [name for name, criterion in CRITERIA.known.items() if criterion.batches])
def test_a_criterion_without_its_data_says_which(name: str, tmp_path: Path) -> None:
    """In Python and on the command line, before anything is written."""
    from typer.testing import CliRunner

    from pydeploy.cli.app import app

    model = zoo.build("residual")
    needed = CRITERIA.find(name).batches
    with pytest.raises(ConfigError, match=f"criterion '{name}' needs {needed}"):
        score(model, trace(model, X), name)
    out = tmp_path / "small.safetensors"
    words = f"prune pydeploy:resnet8 --input 1x3x16x16 --ratio 0.5 --criterion {name} --out {out}"
    done = CliRunner().invoke(app, words.split())
    assert f"criterion '{name}' needs {needed}: pass --config" in str(done.exception)
    assert not out.exists()
