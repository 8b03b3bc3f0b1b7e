"""Running a model for its structure: in eval mode or what differs in training, without gradients, with attention that can be
followed.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules import module as hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from pydeploy.errors import TraceError
from pydeploy.prune.forward import evaluating
from pydeploy.prune.structure.training_paths import training_paths
from pydeploy.prune.surgery.attention_heads import by_heads


@dataclass(frozen=True)
class Example:
    """Arguments of one run of the model."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    deployed: Callable[[Any], Any] | None = None
    """What engines give of the model's output; None: all of it."""

    @property
    def tensors(self) -> list[Tensor]:
        return [leaf for leaf in tree_leaves((self.args, dict(self.kwargs))) if isinstance(leaf, Tensor)]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(tensor.shape) for tensor in self.tensors)

    @property
    def batch(self) -> int:
        """Length of the first axis of the first tensor."""
        shape = next(iter(self.shapes), ())
        return shape[0] if shape else 1

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Example:
        args, kwargs = tree_map(
            lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, (self.args, dict(self.kwargs))
        )
        return Example(args, kwargs, self.deployed)

    def meta(self) -> Example:
        """Shapes without values."""
        return self.mapped(lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta"))

    def own(self) -> Example:
        """A copy of the tensors, for forwards that write into their inputs."""
        return self.mapped(lambda t: t.detach().clone())

    def doubled(self) -> Example:
        """A batch of twice the size."""
        batch = self.batch
        return self.mapped(lambda t: torch.cat([t, t]) if t.dim() and t.shape[0] == batch else t)

    def other(self) -> Example:
        """Other values of the same shapes: the negative ones with noise as large as they spread."""
        generator = torch.Generator().manual_seed(0)

        def changed(tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor.clone()
            noise = torch.randn(tensor.shape, generator=generator).to(tensor)
            spread = tensor.std() if tensor.numel() > 1 else tensor.abs().max()
            return noise * (spread if spread > 0 else 1) - tensor

        return self.mapped(changed)


def to_meta(tensor: Tensor) -> Tensor:
    if tensor.is_meta:
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def run(model: nn.Module, example: Example, mode: TorchDispatchMode, where: Where | None = None, *,
        training: bool = False) -> Any:  # fmt: skip
    """Run `model` under `mode`, keeping track of `where` it is; returns the model's output."""
    with ExitStack() as stack:
        stack.enter_context(_plain_transformers())
        stack.enter_context(_uncompiled())
        stack.enter_context(training_paths(model) if training else evaluating(model))
        stack.enter_context(by_heads(model))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # fused attention is one opaque operator
        if where is not None:
            stack.enter_context(where.following(model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(mode)
        return model(*example.args, **example.kwargs)


@contextmanager
def _plain_transformers() -> Iterator[None]:
    """PyTorch's transformer layers operator by operator inside; as before after."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _uncompiled() -> Iterator[None]:
    """What `torch.compile` made runs as it was written inside."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        warnings.filterwarnings("ignore", message=".*global hooks on modules")
        yield


class Where:
    """Which module runs, kept up to date by module hooks."""

    def __init__(self, foreign: Mapping[int, str], turn: int = 0) -> None:
        self.stack: list[list[Any]] = [["", "", 0]]
        self.foreign = foreign
        """Modules, by `id`, that must not run: parts of the model itself instead of its copy's."""
        self.turn = turn
        """Number of the run: what is learnt about an operator of one run says nothing of another."""

    @property
    def path(self) -> str:
        return str(self.stack[-1][0])

    def next(self) -> tuple[str, tuple[str, int]]:
        frame = self.stack[-1]
        frame[2] += 1
        return frame[0], (frame[1], frame[2])

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        names = {id(module): (path, self._kind(path, module)) for path, module in model.named_modules()}

        def enter(module: nn.Module, _args: Any) -> None:
            if id(module) in self.foreign:
                raise TraceError(self.foreign[id(module)])
            self.stack.append([*names.get(id(module), (self.path, "")), 0])

        def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
            if len(self.stack) > 1:
                self.stack.pop()

        handles = (
            hooks.register_module_forward_pre_hook(enter),
            hooks.register_module_forward_hook(leave, always_call=True),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _kind(self, path: str, module: nn.Module) -> str:
        """PyTorch's own layers are used all over: what is learnt about one of them says nothing of the next."""
        cls = type(module)
        name = path if cls.__module__.startswith("torch.nn") else f"{cls.__module__}.{cls.__qualname__}"
        return f"{name}@{self.turn}" if self.turn else name


def leaves(tree: Any, depth: int = 8) -> Iterator[Tensor]:
    """All tensors in an output: in lists, dicts, dataclasses and other objects' attributes."""
    if isinstance(tree, Tensor):
        yield tree
    elif depth and isinstance(tree, Mapping):
        for item in tree.values():
            yield from leaves(item, depth - 1)
    elif depth and isinstance(tree, list | tuple | set | frozenset):
        for item in tree:
            yield from leaves(item, depth - 1)
    elif depth and hasattr(tree, "__dict__") and not isinstance(tree, type | nn.Module):
        yield from leaves(vars(tree), depth - 1)
    elif depth and hasattr(tree, "__slots__"):
        yield from leaves([getattr(tree, name, None) for name in tree.__slots__], depth - 1)
