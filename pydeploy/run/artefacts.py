"""Where the files of a run lie: the only place that knows file names inside a run directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Files:
    """Files in the folder of a stage, or of one engine inside it."""

    folder: Path

    @property
    def weights(self) -> Path:
        """The network, as `pydeploy.save` writes it."""
        return self.folder / "model.safetensors"

    @property
    def checkpoint(self) -> Path:
        """Where an interrupted training goes on."""
        return self.folder / "checkpoint.safetensors"

    @property
    def history(self) -> Path:
        """Loss and learning rate of each epoch."""
        return self.folder / "history.json"

    @property
    def graph(self) -> Path:
        """What can be pruned."""
        return self.folder / "graph.json"

    @property
    def scores(self) -> Path:
        """Importance of every channel."""
        return self.folder / "scores.npz"

    @property
    def onnx(self) -> Path:
        """The file that the engine was built from."""
        return self.folder / "model.onnx"

    @property
    def engine(self) -> Path:
        """The engine; its record lies beside it."""
        return self.folder / "model.engine"

    @property
    def float_onnx(self) -> Path:
        """Of an int8 target: what `onnx` was made from."""
        return self.folder / "float.onnx"

    @property
    def float_engine(self) -> Path:
        """Of an int8 target: the engine of `float_onnx`."""
        return self.folder / "float.engine"

    @property
    def float_metrics(self) -> Path:
        """Of an int8 target: the metrics of `float_engine`."""
        return self.folder / "float.json"

    @property
    def metrics(self) -> Path:
        """What a program's own `evaluate` says of an engine."""
        return self.folder / "metrics.json"

    @property
    def facts(self) -> Path:
        """`EngineFacts`, or `TableFacts` beside a table."""
        return self.folder / "facts.json"

    @property
    def ranges(self) -> Path:
        """Calibrated ranges."""
        return self.folder / "ranges.json"

    @property
    def counts(self) -> Path:
        """What an interrupted calibration has counted."""
        return self.folder / "counts.json"

    @property
    def quantized(self) -> Path:
        """Which layers are int8."""
        return self.folder / "quantized.json"

    @property
    def mixed(self) -> Path:
        """Which layers are int8 in mixed precision, and why."""
        return self.folder / "mixed.json"

    @property
    def note(self) -> Path:
        """A remark on a further point of the comparison."""
        return self.folder / "note.json"

    @property
    def plan(self) -> Path:
        """How many channels each group keeps, and which."""
        return self.folder / "plan.json"

    @property
    def uniform(self) -> Path:
        """The uniform plan that was found."""
        return self.folder / "uniform.json"

    @property
    def table(self) -> Path:
        """The latency table."""
        return self.folder / "table.sqlite"

    @property
    def timings(self) -> Path:
        """Latencies of all engines, in turns."""
        return self.folder / "timings.json"

    @property
    def stamp(self) -> Path:
        """What a finished stage read, and hashes of what it left."""
        return self.folder / "stamp.json"

    @property
    def started(self) -> Path:
        """The same of a stage that is worked on."""
        return self.folder / "started.json"

    @property
    def readme(self) -> Path:
        """What is shipped, in words."""
        return self.folder / "README.md"

    @property
    def source(self) -> Path:
        """The ONNX file without Q/DQ pairs."""
        return self.float_onnx if self.float_onnx.is_file() else self.onnx

    @property
    def of_engine(self) -> tuple[Path, ...]:
        """All that makes a folder the folder of an engine."""
        return self.engine, Path(f"{self.engine}.json"), self.onnx, self.facts


@dataclass(frozen=True)
class Artefacts:
    """Paths inside the run directory `root`."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.json"

    @property
    def dense_weights(self) -> Path:
        return Files(self.root / "01_train").weights

    @property
    def graph(self) -> Path:
        return Files(self.root / "02_graph").graph

    @property
    def scores(self) -> Path:
        return Files(self.root / "03_scores").scores

    @property
    def dense(self) -> Path:
        """Folder of the dense engine: ``model.onnx``, ``model.engine``, ``facts.json``.

        For an int8 target also ``float.onnx``, what ``model.onnx`` was made from, and ``ranges.json``, ``quantized.json``.
        """
        return self.root / "04_dense"

    @property
    def table(self) -> Path:
        return Files(self.root / "05_table").table

    @property
    def table_facts(self) -> Path:
        return Files(self.root / "05_table").facts

    @property
    def search(self) -> Path:
        """Folder of the inner loop: ``round1.json``, ``round1/``, ..."""
        return self.root / "06_search"

    @property
    def plan(self) -> Path:
        """The plan that was chosen."""
        return Files(self.root / "06_search").plan

    @property
    def tuned_weights(self) -> Path:
        return Files(self.root / "07_finetune").weights

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

    def judged(self, folder: Path) -> Path:
        """Folder of what a program's own `evaluate` says of the engine in `folder`, `dense` or `pruned`."""
        return self.root / f"{folder.name[:2]}_judged"

    def candidate(self, slug: str) -> Path:
        """Folder of one further point of the comparison, as `dense`."""
        return self.root / f"10_{slug}"

    @property
    def samples(self) -> Path:
        """Folder of test samples as engines see them, one picture a sample."""
        return self.root / "samples"

    @property
    def timings(self) -> Path:
        """Latencies of all engines, measured in turns, and per-layer profiles."""
        return Files(self.root / "11_profile").timings

    @property
    def report(self) -> Path:
        return self.root / "report.json"

    @property
    def deploy(self) -> Path:
        """Folder of the engine to ship, as `dense`, with ``preprocessing.json``."""
        return self.root / "deploy"

    @property
    def overrides(self) -> Path:
        """What ``--set`` changed of the config, by key."""
        return self.root / "set.json"


def finished(root: Path) -> bool:
    """Whether a run directory holds a finished stage."""
    return any(Files(folder).stamp.is_file() for folder in root.glob("*"))


def begun(root: Path) -> bool:
    """Whether a run directory holds a stage that is finished or was worked on."""
    return finished(root) or any(Files(folder).started.is_file() for folder in root.glob("*"))
