"""Whether an exported file computes what the model computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pydeploy.errors import Mismatch


def check_same(compute: Callable[[Sequence[Tensor]], Mapping[str, Tensor]], inputs: Mapping[str, Tensor], path: Path,
               tolerance: float) -> None:  # fmt: skip
    """Raise `Mismatch` unless ONNX Runtime computes from `path` what `compute` gives, on random inputs of these shapes."""
    import onnxruntime

    generator = torch.Generator().manual_seed(0)
    samples = {name: torch.randn(t.shape, generator=generator) if t.is_floating_point() else t.clone()
               for name, t in inputs.items()}  # fmt: skip
    with torch.no_grad():
        expected = compute(list(samples.values()))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    read = {spec.name for spec in session.get_inputs()}
    found = session.run(list(expected), {name: t.numpy() for name, t in samples.items() if name in read})
    for (name, want), got in zip(expected.items(), found, strict=True):
        error = difference(want.detach().numpy(), got)
        if not error <= tolerance:
            what = "of its largest value" if want.is_floating_point() else "of its entries"
            raise Mismatch(
                f"output '{name}' of the exported file differs from PyTorch by {error:.2g} {what} "
                f"(limit {tolerance:g}); the model's forward may depend on data or on training mode"
            )


def difference(want: NDArray[Any], got: NDArray[Any]) -> float:
    """Largest difference by the largest value; of truth values and integers the share that differs."""
    if want.shape != got.shape:
        return float("inf")
    if not np.issubdtype(want.dtype, np.floating):
        return float(np.mean(want != got)) if want.size else 0.0
    same = (want == got) | (np.isnan(want) & np.isnan(got))
    if same.all():
        return 0.0
    finite = np.abs(want[np.isfinite(want)])
    scale = max(float(finite.max()) if finite.size else 0.0, 1e-6)
    return float(np.nan_to_num(np.abs(want - got)[~same], nan=np.inf).max()) / scale
