"""Importance of every channel by a criterion: finds it, checks what it needs, gives it that, and checks what it returns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pydeploy.errors import ConfigError, DataError, DeployError, nearest
from pydeploy.graph import Graph
from pydeploy.guests import resolve
from pydeploy.guests.folders import folder_of
from pydeploy.prune.criteria import CRITERIA
from pydeploy.prune.criteria.activations import Activations
from pydeploy.prune.criteria.contract import Criterion
from pydeploy.prune.criteria.learning import Learning
from pydeploy.prune.criteria.members import Groups, members
from pydeploy.prune.criteria.passes import Batch, Batches, GatedLosses, Gradients, Loss, NormAfter
from pydeploy.prune.forward import evaluating

Found = Mapping[str, NDArray[np.float64]]


def score(model: nn.Module, graph: Graph, criterion: str, *, data: Iterable[Batch] | None = None, loss: Loss | None = None,
          seed: int = 0, options: Mapping[str, Any] | None = None) -> dict[str, NDArray[np.float32]]:  # fmt: skip
    """Importance of every channel of every prunable group, ``{group: (width,) float32}``, higher = keep.

    `criterion` is a name (``pydeploy criteria`` lists them), ``FILE.py:FUNCTION``, or what an installed package registers.
    `options` are its own, and ``fallback``, the criterion of those groups that it cannot judge. Those that look at activations
    need `data`, batches of ``(inputs, target)`` with `inputs` a tensor or the tuple of the forward's arguments; those of
    gradients also ``loss(outputs, target) -> scalar``. `model` is left as it was.
    """
    first, second, settings = chosen(criterion, options or {})
    for one in (first, second):
        if one is None or not one.batches:
            continue
        labelled = one.batches == "labelled batches"
        if data is None or (labelled and loss is None):
            raise ConfigError(
                f"criterion '{one.name}' needs {one.batches}: pass data={' and loss=' if labelled else ''}"
            )
    with _no_side_effects(model):
        groups = members(model, graph)
        batches = None if data is None else Batches(data)
        scores = _run(first, settings, model, graph, groups, batches, loss, seed)
        if missing := {name: group for name, group in groups.items() if name not in scores}:
            if second is None:
                raise _not_judged(first, next(iter(missing)))
            others = _run(second, {}, model, graph, missing, batches, loss, seed)
            scores |= _rescaled(others, scores)
            for name in missing:
                if name not in scores:
                    raise _not_judged(second, name)
    return {group.name: scores[group.name].astype(np.float32) for group in graph.prunable}


def chosen(criterion: str, options: Mapping[str, Any]) -> tuple[Criterion, Criterion | None, dict[str, Any]]:
    """A criterion, the one to fall back to, and the checked options. Raises `ConfigError`, and `DataError` for a missing file."""
    found = CRITERIA.find(criterion)
    own = {key: value for key, value in options.items() if key != "fallback"}
    if "fallback" not in options:
        return found, None, found.settings(own)
    fallback = options["fallback"]
    if not isinstance(fallback, str):
        raise ConfigError(f"option 'fallback' of criterion '{criterion}' names a criterion, got {fallback!r}")
    return found, CRITERIA.find(fallback), found.settings(own)


def _run(criterion: Criterion, settings: Mapping[str, Any], model: nn.Module, graph: Graph, groups: Groups,
         batches: Batches | None, loss: Loss | None, seed: int) -> dict[str, NDArray[np.float64]]:  # fmt: skip
    """Checked scores of those of `groups` that the criterion judges."""
    needs: dict[str, Any] = {"groups": groups, "graph": graph, "generator": np.random.default_rng(seed),
                             "norm_after": NormAfter(model, graph, batches)}  # fmt: skip
    if batches is not None:
        needs["activations"] = Activations(model, groups, batches)
        if loss is not None:
            needs |= {
                "gradients": Gradients(model, groups, batches, loss),
                "gated_losses": GatedLosses(model, graph, batches, loss),
                "learning": Learning(model, graph, batches, loss, seed),
            }
    given = {name: needs.get(name) for name in criterion.needs if name != "group"}
    try:
        if "group" in criterion.needs:
            found: Any = {name: criterion.function(**given, group=group, **settings) for name, group in groups.items()}
        else:
            found = criterion.function(**given, **settings)
    except DeployError:
        raise
    except Exception as error:
        if criterion.name in CRITERIA:
            raise
        told = resolve.told(error, folder_of(criterion.function))
        raise ConfigError(f"criterion '{criterion.name}' fails: {told}") from error
    return _checked(criterion, found, groups)


def _checked(criterion: Criterion, found: Any, groups: Groups) -> dict[str, NDArray[np.float64]]:
    if not isinstance(found, Mapping):
        raise ConfigError(
            f"criterion '{criterion.name}' returns {type(found).__name__}; expected {{group: scores}} as it takes 'groups'"
        )
    for name in found:
        if name not in groups:
            raise ConfigError(
                f"criterion '{criterion.name}' scores '{name}', no such group{nearest(str(name), groups)}"
            )
    return {
        name: _array(criterion, values, groups[name].width, name)
        for name, values in found.items()
        if values is not None
    }


def _array(criterion: Criterion, values: Any, width: int, group: str) -> NDArray[np.float64]:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    try:
        scores = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ConfigError(f"criterion '{criterion.name}' gives no numbers for group '{group}': {values!r}") from None
    if scores.shape != (width,):
        raise ConfigError(
            f"criterion '{criterion.name}' gives shape {list(scores.shape)} for group '{group}', expected [{width}]"
        )
    if not np.isfinite(scores).all():
        raise DataError(f"criterion '{criterion.name}' gives NaN or infinity for group '{group}': "
                        "the weights or batches hold such values")  # fmt: skip
    return scores


def _not_judged(criterion: Criterion, group: str) -> DataError:
    what = (
        f"needs {criterion.judges} on every group; '{group}' has none"
        if criterion.judges
        else f"cannot judge group '{group}'"
    )
    return DataError(f"criterion '{criterion.name}' {what}: set its option 'fallback' to another criterion, such as l1")


def _rescaled(others: Found, judged: Found) -> dict[str, NDArray[np.float64]]:
    """Scores of another criterion, their mean as of those that were judged, so that both compare."""
    means = [float(np.mean(np.concatenate(list(scores.values())))) for scores in (judged, others) if scores]
    factor = means[0] / means[1] if len(means) == 2 and means[1] > 0 and means[0] > 0 else 1.0
    return {name: values * factor for name, values in others.items()}


@contextmanager
def _no_side_effects(model: nn.Module) -> Iterator[None]:
    """Eval mode and gradients on inside; every mode, flag and gradient as before after."""
    before = [(t, t.requires_grad, t.grad) for t in (*model.parameters(), *model.buffers())]
    for tensor, _, _ in before:
        tensor.grad = None
        if isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
            tensor.requires_grad_()
    try:
        with torch.inference_mode(mode=False), torch.enable_grad(), evaluating(model):
            yield
    finally:
        for tensor, flag, grad in before:
            tensor.requires_grad_(flag)
            tensor.grad = grad
