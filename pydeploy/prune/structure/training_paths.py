"""Training mode as far as the structure depends on it: auxiliary heads, losses and all else that a forward does where
`self.training` holds.

Dropout and norms compute other values in training mode, on channels that stay apart; so these layers stay in eval mode, and the
path of a model shows at any batch size, without chance and without a write to running statistics.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from pydeploy.prune.forward import in_mode
from pydeploy.prune.surgery.references import methods, names_in


@contextmanager
def training_paths(model: nn.Module) -> Iterator[None]:
    """Training mode inside for all modules but those whose structure cannot depend on it; all modes and tensors as before after."""
    with in_mode(model, training=True):
        for module in model.modules():
            if _alike(module):
                module.training = False
        yield


def asks_for_training(model: nn.Module) -> bool:
    """Whether the code of some module looks at its mode; that of libraries does so for losses, dropout and layers that are read
    in no other mode.
    """
    return any(not type(m).__module__.startswith(_LIBRARIES) and not _alike(m) and _asks(m) for m in model.modules())


def _alike(module: nn.Module) -> bool:
    """PyTorch's layers, norms, dropout, and what torchvision and timm have of these."""
    library = type(module).__module__
    if library.startswith("torch.nn.") or isinstance(module, (_NormBase, _DropoutNd)):
        return True
    return library.startswith(_LIBRARIES) and not module._modules and not module._parameters


def _asks(module: nn.Module) -> bool:
    functions = [value for value in vars(module).values() if isinstance(value, FunctionType)]
    return any("training" in names_in(function.__code__) for function in (*methods(type(module)), *functions))


_LIBRARIES = ("torchvision.", "timm.")
