"""A realistic report for the tests of `pydeploy.report`: ResNet-20 on a CPU, every part filled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydeploy.report import (
    Candidate,
    GroupWidth,
    Latency,
    Layer,
    ModelResult,
    Models,
    Report,
    Round,
    TableFacts,
    recommend,
)
from pydeploy.tasks.metric import Metric
from pydeploy.timing.records import Target

ACCURACY = Metric("accuracy")
CPU = Target(
    device="Intel Xeon (2 cores)",
    backend="onnxruntime",
    backend_version="1.31.0",
    precision="fp32",
    batch=1,
    threads=2,
    facts={"instruction sets": "avx512f avx512_vnni amx_bf16", "affinity": "0,1", "governor": "performance"},
)

DENSE = {
    "conv1": 32,
    **{f"layer{s}.{b}.conv{c}": 32 * 2 ** (s - 1) for s in (1, 2, 3) for b in range(3) for c in (1, 2)},
}
CUT = (20, 12, 20, 8, 20, 16, 20, 28, 44, 24, 44, 20, 44, 52, 96, 40, 96, 32, 96)


def latency(median: float, *, n: int = 400, disturbed: bool = False) -> Latency:
    return Latency(median, 0.975 * median, 1.04 * median, n, disturbed)


def model(median: float, accuracy: float, **changes: Any) -> ModelResult:
    facts = {"latency_us": latency(median), "value": accuracy, "samples": 10000, "params": 1_083_434,
             "macs": 124_700_672, "bytes": 4_361_216, "onnx_bytes": 4_356_008, "precision": "fp32",
             "target": CPU.fingerprint}  # fmt: skip
    return ModelResult(**{**facts, **changes})


def models(**changes: Any) -> Models:
    small = {"params": 402_118, "macs": 41_219_200, "bytes": 1_630_208, "onnx_bytes": 1_624_101}
    facts = {
        "dense": model(1102.4, 0.9321),
        "pruned": model(531.7, 0.9334, **small),
        "quantized": model(
            452.1,
            0.9318,
            **{
                **small,
                "precision": "int8",
                "target": replace(CPU, precision="int8").fingerprint,
                "bytes": 470_016,
                "onnx_bytes": 461_220,
            },
        ),
    }
    return Models(**{**facts, **changes})


def candidate(name: str, method: str, median: float, accuracy: float, **changes: Any) -> Candidate:
    facts = {"precision": "fp32", "latency_us": latency(median), "params": 500_000, "macs": 45_000_000}
    return Candidate(name=name, method=method, value=accuracy, **{**facts, **changes})


def layers() -> tuple[Layer, ...]:
    rows, cin, cin_cut = [], 1, 1
    for (name, cout), cut in zip(DENSE.items(), CUT, strict=True):
        before = 8.0 + cout * cin * 0.011
        rows.append(Layer(name=name, kind="conv", cin_before=cin, cin_after=cin_cut, cout_before=cout, cout_after=cut,
                          before_us=before, after_us=8.0 + cut * cin_cut * 0.013))  # fmt: skip
        cin, cin_cut = cout, cut
    rows.append(Layer(name="fc", kind="linear", cin_before=128, cin_after=96, cout_before=10, cout_after=10,
                      before_us=4.1, after_us=3.8))  # fmt: skip
    return tuple(rows)


def sample(**changes: Any) -> Report:
    """The sample; `changes` replace whole fields."""
    engines = changes.get("models", models())
    target = changes.get("target", CPU)
    facts: dict[str, Any] = {
        "pydeploy_version": "0.1.0",
        "created": "2026-03-01T12:00:00Z",
        "command": "pydeploy run configs/fashion_mnist_resnet20_cpu.yaml --out runs/demo",
        "config": {"seed": 0, "model": {"name": "resnet20", "width": 32}, "budget": {"fraction": 0.5}},
        "seed": 0,
        "task": "classification",
        "metric": ACCURACY,
        "model": "resnet20",
        "target": target,
        "budget_us": 551.2,
        "dense_us": 1102.4,
        "met": True,
        "models": engines,
        "recommendation": recommend(engines, ACCURACY, measured=target.measured),
        "candidates": (
            candidate("joint 0.36", "joint", 361.0, 0.9312),
            candidate("joint 0.70", "joint", 771.0, 0.9341),
            candidate("uniform 0.5", "uniform", 548.3, 0.9287, note="8-channel grid"),
            candidate("Torch-Pruning 30 %", "torch-pruning", 1150.0, 0.9325, note="L1, global"),
            candidate("Torch-Pruning 50 %, 16", "torch-pruning", 470.0, 0.9336),
            candidate("Torch-Pruning 70 %, 16", "torch-pruning", 450.0, 0.9264),
        ),
        "rounds": (
            Round(predicted_us=549.8, measured_us=588.3, met=False, widths={"a": 20, "b": 44}),
            Round(number=2, predicted_us=550.1, measured_us=531.7, met=True, widths={"a": 20, "b": 40}),
        ),
        "layers": layers(),
        "groups": (
            GroupWidth(name="stage1", before=32, after=20),
            GroupWidth(name="stage3", before=128, after=96),
            GroupWidth(name="fc", before=10, after=10, frozen="output of the model"),
        ),
        "table": TableFacts(probes=49, keys=812, seconds=61.4),
        "seconds": {"train": 421.0, "trace": 2.1, "table": 61.4, "solve": 0.2, "finetune": 160.3, "profile": 9.8},
        "total_seconds": 654.8,
    }
    return Report(**{**facts, **changes})
