"""Numbers that modules keep of their widths and that the forward does not read: RepVGG's ``in_channels``, of which only its merge
makes use. No trial shows which channels they count, so they follow what lies around them, if that is plain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from torch import nn

from pydeploy.graph import Extent
from pydeploy.prune.structure.groups import Assembly, extent_of
from pydeploy.prune.structure.layout import FIXED, Labels
from pydeploy.prune.structure.state import Tracer
from pydeploy.prune.surgery.references import methods, names_in

Found = tuple[Mapping[str, list[Labels]], list[str]]


def unread(model: nn.Module, tracer: Tracer, found: Assembly) -> Found:
    """``{module.attribute: channels that it counts}`` of integers that equal the width of channels in the module's own layers, and
    the attributes that equal several unlike widths and that some method besides the forward reads.
    """
    counted: dict[str, list[Labels]] = {}
    doubtful = []
    for path, module in model.named_modules():
        if type(module).__module__.startswith("torch."):
            continue
        numbers = {name: value for name, value in vars(module).items() if type(value) is int and value > 1}
        dims = list(_dims(path, module)) if numbers else []
        for name, value in numbers.items():
            place = f"{path}.{name}".lstrip(".")
            if name.startswith("_") or place in found.graph.numbers:
                continue
            unlike = _unlike(tracer, found, [(param, dim) for param, dim, size in dims if size == value], value)
            if len(unlike) > 1:
                side = [(param, dim) for param, dim, size in dims if size == value and dim == _side(name)]
                unlike = _unlike(tracer, found, side, value) or unlike
            if not any(extent.terms for extent in unlike):
                continue
            if len(unlike) == 1:
                counted[place] = list(unlike.values())
            elif _read_later(type(module), name):
                doubtful.append(place)
    return counted, doubtful


def _dims(path: str, module: nn.Module) -> Iterator[tuple[str, int, int]]:
    """Outputs and inputs of the parameters of `module` and of the layers right in it, through PyTorch's containers."""
    for name, parameter in module._parameters.items():
        for dim, size in enumerate(parameter.shape[:2] if parameter is not None else ()):
            yield f"{path}.{name}".lstrip("."), dim, size
    for name, child in module._modules.items():
        if child is not None and type(child).__module__.startswith("torch."):
            yield from _dims(f"{path}.{name}".lstrip("."), child)


def _unlike(tracer: Tracer, found: Assembly, places: list[tuple[str, int]], width: int) -> dict[Extent, Labels]:
    """The channels along these dims, by how many there are of them after a cut."""
    unlike: dict[Extent, Labels] = {}
    for place in places:
        labels = tracer.atoms.places.get(place, np.full(width, FIXED, dtype=np.int64))
        unlike.setdefault(extent_of(labels, width, tracer.atoms, found.home, found.graph.groups), labels)
    return unlike


def _side(name: str) -> int:
    """The dim of weights that a name tells of: 0 outputs, 1 inputs, -1 neither."""
    return 0 if "out" in name else 1 if name.startswith("in") or "_in" in name else -1


def _read_later(kind: type, name: str) -> bool:
    """Whether methods read the attribute, but neither those that build the module nor those that its forward uses."""
    found = {method.__name__: names_in(method.__code__) for method in reversed(list(methods(kind)))}
    early = ["__init__", "forward"]
    for method in early:
        early += [other for other in found.get(method, ()) if other in found and other not in early]
    used = {other for method in early[1:] if method != "__init__" for other in found.get(method, ())}
    return name not in used and any(name in names for method, names in found.items() if method not in early)
