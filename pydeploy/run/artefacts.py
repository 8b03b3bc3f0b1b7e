"""Where the files of a run lie. The only place that knows file names inside a run directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Artefacts:
    """Paths inside the run directory `root`."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.json"

    @property
    def dense_weights(self) -> Path:
        return self.root / "01_train" / "model.safetensors"

    @property
    def graph(self) -> Path:
        return self.root / "02_graph" / "graph.json"

    @property
    def scores(self) -> Path:
        return self.root / "03_scores" / "scores.npz"

    @property
    def dense(self) -> Path:
        """Folder of the dense engine: ``model.onnx``, ``model.engine``, ``facts.json``.

        For an int8 target also ``float.onnx``, what ``model.onnx`` was made from, and ``ranges.json``, ``quantized.json``.
        """
        return self.root / "04_dense"

    @property
    def table(self) -> Path:
        return self.root / "05_table" / "table.sqlite"

    @property
    def table_facts(self) -> Path:
        return self.root / "05_table" / "facts.json"

    @property
    def search(self) -> Path:
        """Folder of the inner loop: ``round1.json``, ``round1/``, ..."""
        return self.root / "06_search"

    @property
    def plan(self) -> Path:
        """The plan that was chosen."""
        return self.root / "06_search" / "plan.json"

    @property
    def tuned_weights(self) -> Path:
        return self.root / "07_finetune" / "model.safetensors"

    @property
    def pruned(self) -> Path:
        """Folder of the fine-tuned engine, as `dense`."""
        return self.root / "08_pruned"

    @property
    def quantized(self) -> Path:
        """Folder of the INT8 engine, as `dense`; absent when none was asked for, and where `pruned` is one."""
        return self.root / "09_quantized"

    @property
    def unquantized(self) -> Path:
        """Folder of the fine-tuned network's float engine where the target is int8, as `dense`; absent otherwise."""
        return self.root / "09_unquantized"

    @property
    def half(self) -> Path:
        """Folder of the half-precision engine, as `dense`; absent where the backend has none."""
        return self.root / "09_half"

    @property
    def mixed(self) -> Path:
        """Folder of ``mixed.json`` and the engine with some layers in INT8; without engine where it would be no other."""
        return self.root / "09_mixed"

    def candidate(self, slug: str) -> Path:
        """Folder of one further point of the comparison, as `dense`."""
        return self.root / f"10_{slug}"

    @staticmethod
    def float_file(folder: Path) -> Path:
        """The ONNX file without Q/DQ pairs in the folder of an engine."""
        return folder / ("float.onnx" if (folder / "float.onnx").is_file() else "model.onnx")

    @property
    def timings(self) -> Path:
        """Latencies of all engines, measured in turns, and per-layer profiles."""
        return self.root / "11_profile" / "timings.json"

    @property
    def report(self) -> Path:
        return self.root / "report.json"
