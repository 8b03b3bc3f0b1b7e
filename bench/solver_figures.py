"""Writes docs/figures/solver.md: time, gap, agreement with CP-SAT, and what other rules keep.

    PYDEPLOY_TABLES=runs/tables python bench/solver_figures.py --work runs/solver --minutes 4
    python bench/solver_figures.py --work runs/solver --minutes 0        # only write the page

Measured tables are those of bench/tables.py; cases without one are on the made-up device of bench/bench_solver.py and say so.
Each case is kept in the work folder and not repeated, so the whole can be run in windows.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import bench_solver as bench
import numpy as np

from pydeploy.errors import Infeasible
from pydeploy.files import read_json, write_json, write_text
from pydeploy.planning.solve import _problem, solve

PAGE = Path("docs/figures/solver.md")
HEADING = "# The solver: time, gap, and other rules"
REPEATS = 3
CP_SAT_S = 15.0
TOLERANCES = {"resnet50": 1e-3, "densenet121": 1e-2}
"""Cases of 16 widths a group, and the gap that is asked for. Measured tables are solved without a gap."""
INTRO = f"""\
Written by `python bench/solver_figures.py`: two threads on two cores, medians of {REPEATS}. *Made up* is the analytic device of
`bench/bench_solver.py` with 16 widths a group, solved to a gap of 0.1 % (ResNet-50) and 1 % (DenseNet-121); all others are
measured tables, solved without a gap. Seconds of `solve` include looking up the table's entries. CP-SAT runs with two workers for
at most {CP_SAT_S:.0f} s; its costs are rounded down to nanoseconds and its scores to millionths, so it may exceed the optimum by that."""
RULES_INTRO = """\
What each rule keeps of the dense network's score for half of its latency, and what the joint plan keeps at the latency that the
same table predicts for that rule's plan. What was built and measured is in [tables.md](tables.md)."""


def cases() -> list[str]:
    return [*bench.MEASURED, *TOLERANCES]


def figures(name: str) -> dict[str, Any]:
    """Everything that the page says of one case."""
    graph, scores, table = bench.case_of(name)
    dense_us, tolerance = table.predict_us({}), TOLERANCES.get(name, 0.0)
    found: dict[str, Any] = {"groups": len(graph.prunable), "budgets": {}, "rules": {}, "load": os.getloadavg()[0]}
    found["widths"] = max(len(widths) for widths in table.widths.values())
    for share in bench.SHARES:
        asked = {"budget_us": share * dense_us, "tolerance": tolerance}
        seconds = []
        try:
            for _ in range(REPEATS):
                began = time.monotonic()
                plan = solve(graph, scores, table, **asked)
                seconds.append(time.monotonic() - began)
        except Infeasible:
            continue
        one = {"seconds": float(np.median(seconds)), "gap": plan.gap, "score": plan.score, "bound": plan.bound}
        if name != "densenet121":  # partial sums of widths are no model for CP-SAT here
            problem, began = _problem(graph, scores, table, None, 1), time.monotonic()
            value, bound = bench.cp_sat(problem, share * dense_us, CP_SAT_S)
            one["cp_sat"] = {"seconds": time.monotonic() - began, "value": value, "bound": bound}
        found["budgets"][str(share)] = one
    total = sum(float(scores[group.name].sum()) for group in graph.prunable)
    for rule, make in bench.RULES.items() if name in bench.MEASURED else ():
        try:
            began = time.monotonic()
            plan = make(graph, scores, table, budget_us=0.5 * dense_us)
        except Infeasible:
            continue
        joint = solve(graph, scores, table, budget_us=plan.latency_us)
        found["rules"][rule] = {"kept": plan.score / total, "predicted": plan.latency_us / dense_us,
                                "joint": joint.score / total, "seconds": time.monotonic() - began}  # fmt: skip
    return found


def page(found: dict[str, dict[str, Any]]) -> str:
    loads = ", ".join(f"{case['load']:.1f}" for case in found.values())
    lines = [
        HEADING, "", INTRO, "",
        f"Load average when a case began: {loads} (1 or less: the cores were free).", "",
        "| table | groups x widths | budget | solve | gap | CP-SAT | CP-SAT's best over ours | CP-SAT's bound over ours |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, case in found.items():
        label = (
            f"{name}, made up"
            if name in TOLERANCES
            else name.replace("/onnxruntime-", ", ONNX Runtime ").replace("/openvino-", ", OpenVINO ")
        )
        for share, one in case["budgets"].items():
            cells = [
                label,
                f"{case['groups']} x {case['widths']}",
                f"{float(share):.0%}",
                f"{one['seconds']:.2f} s",
                f"{one['gap']:.2%}",
            ]
            other = one.get("cp_sat")
            cells += ["not run", "", ""] if other is None else [
                f"{other['seconds']:.1f} s", *(f"{other[key] / one['score'] - 1:+.4%}" for key in ("value", "bound"))
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", RULES_INTRO, "", "| table | rule | predicted / dense | kept | joint, as fast | difference |",
              "|---|---|---|---|---|---|"]  # fmt: skip
    for name, case in found.items():
        for rule, one in case["rules"].items():
            if rule != "joint":
                lines.append(f"| {name} | {rule} | {one['predicted']:.3f} | {one['kept']:.2%} | {one['joint']:.2%} | "
                             f"{(one['joint'] - one['kept']) * 100:+.2f} points |")  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for results")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no further case after so long")
    asked = parser.parse_args()
    until = time.monotonic() + 60 * asked.minutes
    found = {}
    for name in cases():
        path = asked.work / f"{name.replace('/', '-')}.json"
        if not path.is_file() and time.monotonic() < until:
            asked.work.mkdir(parents=True, exist_ok=True)
            write_json(path, figures(name))
        if path.is_file():
            found[name] = read_json(path)
    write_text(PAGE, page(found))


if __name__ == "__main__":
    main()
