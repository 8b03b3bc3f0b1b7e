"""Models by the names that users type: ``pydeploy:NAME``, ``torchvision:NAME``, ``timm:NAME``, ``smp:NAME``, or their own code."""

from __future__ import annotations

import copy
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from pydeploy.errors import BackendUnavailable, ConfigError, nearest
from pydeploy.guests import resolve
from pydeploy.guests.names import Names
from pydeploy.models import MODELS as ZOO
from pydeploy.models import build
from pydeploy.models.stems import changed_stem

PACKAGES = {"torchvision": "torchvision", "timm": "timm", "smp": "segmentation_models_pytorch"}
"""Libraries of models, by the word before the colon."""
SOURCES = ("pydeploy", *PACKAGES)
WORDS = {"num_classes": ("num_classes", "classes"), "in_channels": ("in_channels", "in_chans")}
"""What factories call the number of classes and of input channels."""


class ModelNames(Names[Callable[..., nn.Module]]):
    """`Names` with ``SOURCE:NAME`` for libraries of models; a plain name is one of pydeploy's own."""

    def find(self, name: str) -> Callable[..., nn.Module]:
        home, _, rest = name.partition(":")
        if home in PACKAGES:
            return _from_library(home, rest)
        if home == "pydeploy":
            if rest not in self.known:
                raise ConfigError(f"unknown model '{rest}'{nearest(rest, self.known)}")
            return super().find(rest)
        user = name.rpartition(":")[0]
        if user and name not in self.registered() and not user.endswith(".py") and not resolve.is_module(user):
            raise ConfigError(
                f"unknown model library '{user}'{nearest(user, SOURCES)}; or FILE.py:FACTORY, or PACKAGE.MODULE:FACTORY"
            )
        return super().find(name)

    def placed(self, name: str, folder: Path) -> str:
        return name if name.partition(":")[0] in SOURCES else super().placed(name, folder)

    def stamp(self, name: str) -> Any:
        return name if name.partition(":")[0] in SOURCES else super().stamp(name)


MODELS = ModelNames(kind="model", expected="a function that returns a model", known=ZOO, group="pydeploy.models")
"""Every model that a config may name."""


def named(spec: str, options: Mapping[str, Any], wanted: Mapping[str, int] | None = None) -> nn.Module:
    """The model that `spec` names, built with `options`, in eval mode. Nothing is downloaded unless an option asks for it.

    `wanted` is what the data ask for, ``num_classes`` and ``in_channels``: given to a factory that takes it under one of its
    usual names, unless the options say otherwise. Raises `ConfigError` for a name or an option that does not exist and for
    code that fails, `DataError` for a missing file, `BackendUnavailable` for a source that is not installed.
    """
    factory = MODELS.find(spec)
    if isinstance(factory, nn.Module) and not options:
        return copy.deepcopy(factory).eval()
    given = {**_asked(spec, factory, wanted or {}, options), **options}
    if (own := spec.removeprefix("pydeploy:")) in ZOO:
        return build(own, **given).eval()
    made = resolve.call(spec, factory, given)
    if not isinstance(made, nn.Module):
        raise ConfigError(f"{spec} returns {type(made).__name__}; expected a PyTorch module")
    return made.eval()


def _asked(
    spec: str, factory: Callable[..., Any], wanted: Mapping[str, int], options: Mapping[str, Any]
) -> dict[str, int]:
    """What the data ask for, by the names that the factory has for it, as far as `options` do not say it."""
    home = spec.partition(":")[0]
    if home == "torchvision":  # trained weights bring their own number of classes
        taken = {"num_classes", "in_channels"} if options.get("weights") is None else {"in_channels"}
    elif home == "timm":
        taken = {"num_classes", "in_chans"}
    else:
        try:
            taken = set(inspect.signature(factory).parameters)
        except (TypeError, ValueError):  # compiled code without a signature
            taken = set()
    found = {}
    for key, value in wanted.items():
        words = [word for word in WORDS.get(key, (key,)) if word in taken]
        if words and not set(words) & set(options):
            found[words[0]] = value
    return found


def _from_library(home: str, name: str) -> Callable[..., Any]:
    package = PACKAGES[home]
    if importlib.util.find_spec(package) is None:
        raise BackendUnavailable(
            f"'{home}:{name}' needs the package '{package}': pip install {package.replace('_', '-')}"
        )
    if home == "timm":
        import timm  # type: ignore[import-not-found,unused-ignore]

        return partial(timm.create_model, name)
    if home == "smp":
        return _from_smp(name)
    from torchvision import models

    if name not in models.list_models():
        raise ConfigError(f"torchvision has no model '{name}'{nearest(name, models.list_models())}")
    builder = models.get_model_builder(name)
    # Many builders fetch a trained backbone unless told not to.
    untrained = {key: None for key in ("weights", "weights_backbone") if key in inspect.signature(builder).parameters}
    return partial(changed_stem, partial(builder, **untrained))


def _from_smp(name: str) -> Callable[..., Any]:
    smp = importlib.import_module("segmentation_models_pytorch")
    known = [key for key, value in vars(smp).items() if isinstance(value, type) and issubclass(value, nn.Module)]
    if name not in known:
        raise ConfigError(f"segmentation_models_pytorch has no model '{name}'{nearest(name, known)}")
    factory: Callable[..., Any] = getattr(smp, name)
    return partial(factory, encoder_weights=None)  # encoders fetch trained weights unless told not to
