"""Models by the names that users type: ``pydeploy:NAME``, ``torchvision:NAME``, ``timm:NAME``, or their own code."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from pydeploy.errors import BackendUnavailable, ConfigError, nearest
from pydeploy.guests import resolve
from pydeploy.models import build

LIBRARIES = ("pydeploy", "torchvision", "timm")


def named(spec: str, options: Mapping[str, Any]) -> nn.Module:
    """The model that `spec` names, built with `options`, in eval mode. Nothing is downloaded unless an option asks for it.

    Raises `ConfigError` for a name or an option that does not exist and for code that fails, `DataError` for a missing file,
    `BackendUnavailable` for a library that is not installed.
    """
    home, _, name = spec.partition(":")
    if home == "pydeploy":
        return build(name, **options).eval()
    factory = _from_library(home, name) if home in LIBRARIES else _from_user(spec)
    made = factory if isinstance(factory, nn.Module) and not options else resolve.call(spec, factory, options)
    if not isinstance(made, nn.Module):
        raise ConfigError(f"{spec} returns {type(made).__name__}; expected a PyTorch module")
    return made.eval()


def _from_user(spec: str) -> Callable[..., Any]:
    home = spec.rpartition(":")[0]
    if not home.endswith(".py") and not resolve.is_module(home):
        raise ConfigError(
            f"unknown model library '{home}'{nearest(home, LIBRARIES)}; or FILE.py:FACTORY, or PACKAGE.MODULE:FACTORY"
        )
    return resolve.find(spec, "a function that returns a model")


def _from_library(home: str, name: str) -> Callable[..., Any]:
    if importlib.util.find_spec(home) is None:
        raise BackendUnavailable(f"'{home}:{name}' needs the package '{home}': pip install {home}")
    if home == "timm":
        import timm  # type: ignore[import-not-found,unused-ignore]

        return partial(timm.create_model, name)
    from torchvision import models

    if name not in models.list_models():
        raise ConfigError(f"torchvision has no model '{name}'{nearest(name, models.list_models())}")
    builder = models.get_model_builder(name)
    # Many builders fetch a trained backbone unless told not to.
    untrained = {key: None for key in ("weights", "weights_backbone") if key in inspect.signature(builder).parameters}
    return partial(builder, **untrained)
