"""The model zoo: convolutional networks by name, for labels and for masks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from pydeploy.errors import ConfigError, nearest
from pydeploy.guests.arguments import check_names, typed
from pydeploy.models.detection.named import ssd300_vgg16_bn, ssd320_mobilenetv2, ssd_cfg, ssd_small
from pydeploy.models.mobilenet import mobilenet_small
from pydeploy.models.resnet import resnet8, resnet20, resnet56
from pydeploy.models.resnet_seg import resnet18_seg, resnet50_seg
from pydeploy.models.segdecnet import segdecnet
from pydeploy.models.segnet import segnet
from pydeploy.models.unet import unet
from pydeploy.models.vgg import vgg11_bn, vgg16_bn

CLASSIFIERS: Mapping[str, Callable[..., nn.Module]] = {
    "resnet8": resnet8,
    "resnet20": resnet20,
    "resnet56": resnet56,
    "vgg11_bn": vgg11_bn,
    "vgg16_bn": vgg16_bn,
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
DETECTORS: Mapping[str, Callable[..., nn.Module]] = {
    "ssd300_vgg16_bn": ssd300_vgg16_bn,
    "ssd320_mobilenetv2": ssd320_mobilenetv2,
    "ssd_cfg": ssd_cfg,
    "ssd_small": ssd_small,
}
"""Scores and offsets at prior boxes."""
MODELS: Mapping[str, Callable[..., nn.Module]] = {**CLASSIFIERS, **SEGMENTERS, **DETECTORS, "segdecnet": segdecnet}
"""Every model that a configuration may name; each function's parameters are its settings."""


def build(name: str, **settings: Any) -> nn.Module:
    """A freshly initialized model (weights follow torch's global seed).

    Raises `ConfigError` for an unknown name or setting, and for a value of another kind; numbers must be positive.
    """
    if name not in MODELS:
        raise ConfigError(f"unknown model '{name}'{nearest(name, MODELS)}")
    known = inspect.signature(MODELS[name]).parameters
    for key, value in settings.items():
        if key not in known:
            raise ConfigError(f"model '{name}' has no setting '{key}'{nearest(key, known)}")
        wanted = {bool: "true or false", int: "a positive integer"}.get(type(known[key].default))
        if wanted and (type(value) is not type(known[key].default) or (value is not False and value < 1)):
            raise ConfigError(f"setting '{key}' of model '{name}' must be {wanted}, got {value!r}")
    check_names(f"model '{name}'", MODELS[name], settings)
    return MODELS[name](**typed(f"model '{name}'", MODELS[name], settings))
