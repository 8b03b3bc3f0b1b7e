"""The model zoo: convolutional networks by name, for labels and for masks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from pydeploy.errors import ConfigError, nearest
from pydeploy.models.mobilenet import mobilenet_small
from pydeploy.models.resnet import resnet8, resnet20, resnet56
from pydeploy.models.resnet_seg import resnet18_seg, resnet50_seg
from pydeploy.models.segdecnet import segdecnet
from pydeploy.models.segnet import segnet
from pydeploy.models.unet import unet
from pydeploy.models.vgg import vgg11_bn

CLASSIFIERS: Mapping[str, Callable[..., nn.Module]] = {
    "resnet8": resnet8,
    "resnet20": resnet20,
    "resnet56": resnet56,
    "vgg11_bn": vgg11_bn,
    "mobilenet_small": mobilenet_small,
}
"""One score a class."""
SEGMENTERS: Mapping[str, Callable[..., nn.Module]] = {
    "unet": unet,
    "segnet": segnet,
    "resnet18_seg": resnet18_seg,
    "resnet50_seg": resnet50_seg,
}
"""One score a class and pixel."""
MODELS: Mapping[str, Callable[..., nn.Module]] = {**CLASSIFIERS, **SEGMENTERS, "segdecnet": segdecnet}
"""Every model that a configuration may name; each function's parameters are its settings."""


def build(name: str, **settings: Any) -> nn.Module:
    """A freshly initialized model (weights follow torch's global seed).

    Raises `ConfigError` for an unknown name or setting, and for a setting that is not a positive integer.
    """
    if name not in MODELS:
        raise ConfigError(f"unknown model '{name}'{nearest(name, MODELS)}")
    known = inspect.signature(MODELS[name]).parameters
    for key, value in settings.items():
        if key not in known:
            raise ConfigError(f"model '{name}' has no setting '{key}'{nearest(key, known)}")
        switch = isinstance(known[key].default, bool)
        if type(value) is not (bool if switch else int) or value < (0 if switch else 1):
            wanted = "true or false" if switch else "a positive integer"
            raise ConfigError(f"setting '{key}' of model '{name}' must be {wanted}, got {value!r}")
    return MODELS[name](**settings)
