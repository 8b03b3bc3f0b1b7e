"""The Markdown page of `tables.py`, from the folders that it filled."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

MODELS = ("resnet18", "resnet50", "mobilenet_v2")
TARGETS = ("openvino:bf16", "openvino:int8", "onnxruntime:fp32")
STEPS = ("measure", "verify", "budgets", "rules")
BEYOND = 0.01
"""How far beyond the fastest and the slowest joint plan a parabola through them is still believed."""
SLACK = 0.03


def page(work: Path) -> str:
    """The Markdown page from whatever results are there."""
    lines = ["# Latency tables: how well they predict", "",
             ("Written by `python bench/tables.py`; 224 x 224, batch 1, random weights. A pair or a step that "
             "was not run says so. Errors are of whole networks: n random plans that the table was not made from, each the mean of "
             "two builds, measured with some of the table's own networks, which tell how fast the computer is; *floor* is the "
             "difference between the two builds; *isolated* is a table of one-layer "
             "networks scaled to the dense network, *MACs* a line through the table's own networks."), "",
             ("A round builds one plan at first, then up to three, and measures those of earlier rounds again beside them; the "
              "median of what a plan took counts. *Yes* says that a plan lies within [-3 %, 0] of the budget, *met* that one "
              "lies below, but none so close."), "",
             ("The other rules' plans are made for the middle budget by the same table, built and measured; then joint plans "
             "are, for budgets from the fastest to the slowest of them. A latency here is the median of several builds. *Joint, "
             "as fast* is what joint plans keep at the rule's measured latency: a parabola through their scores over the "
             "logarithm of what they take; scores are L1 norms, as shares of the dense network's. Seconds are those "
             "of making the plan."), ""]  # fmt: skip
    lines += [*_summary(work), ""]
    for model in MODELS:
        for target in TARGETS:
            lines += [f"## {model}, {target}", "", *_section(work / model / target.replace(":", "-")), ""]
    return "\n".join(lines).rstrip() + "\n"


def read(path: Path) -> dict[str, Any]:
    """What a step found; empty where it was not run."""
    return json.loads(path.read_text()) if path.is_file() else {}


def _summary(work: Path) -> list[str]:
    """One row a pair; empty cells where a step was not run."""
    lines = ["| | median error | 95th percentile | rank correlation | budgets met within 3 % | met | joint over HALP |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for model in MODELS:
        for target in TARGETS:
            folder = work / model / target.replace(":", "-")
            checked, budgets, rules = (read(folder / f"{step}.json") for step in STEPS[1:])
            cells = (
                [f"{checked['median_error']:.2%}", f"{checked['p95_error']:.2%}", f"{checked['spearman']:.3f}"]
                if checked
                else [""] * 3
            )
            said = [_verdict(rounds) for rounds in budgets.get("budgets", {}).values()]
            cells += (
                [f"{said.count('yes')} of {len(said)}", f"{len(said) - said.count('no')} of {len(said)}"]
                if said
                else ["", ""]
            )
            ahead = _ahead(rules, rules["plans"]["HALP"]) if rules else None
            cells.append("" if ahead is None else f"{ahead / rules['total'] * 100:+.2f} points")
            lines.append(f"| {model}, {target} | {' | '.join(cells)} |")
    return lines


def _section(folder: Path) -> list[str]:
    made, checked, budgets, rules = (read(folder / f"{step}.json") for step in STEPS)
    lines: list[str] = []
    for data, told, otherwise in (
        (made if made.get("complete") else {}, _made, "The table was not measured."),
        (checked, _checked, "The prediction was not verified."),
        (budgets, _budgets, "Budgets were not tried."),
        (rules, _rules, "Other rules were not compared."),
    ):
        lines += ["", *(told(data) if data else [otherwise])]
        if note := data.get("note"):
            lines += ["", note]
    return lines[1:]


def _made(made: dict[str, Any]) -> list[str]:
    return [(f"{made['target']}. {made['networks']} networks, {made['keys']} layers in {made['seconds'] / 60:.1f} minutes; "
             f"dense {made['dense_us'] / 1e3:.2f} ms; median interval of a network +-{made['interval']:.1%}; "
             f"{made['disturbed']} networks flagged as disturbed.")]  # fmt: skip


def _checked(checked: dict[str, Any]) -> list[str]:
    named = {"this table": checked, "floor": checked["floor"], "isolated": checked["isolated"], "MACs": checked["macs"]}
    flagged = sum(pair["disturbed"] for pair in checked["pairs"])
    return [
        "| prediction by | median error | 95th percentile | rank correlation | n |",
        "|---|---|---|---|---|",
        *(f"| {name} | {e['median_error']:.2%} | {e['p95_error']:.2%} | {e['spearman']:.3f} | {e['n']} |"
          for name, e in named.items() if e),
        "",
        f"{flagged} of the {checked['n']} plans were measured while the computer was disturbed; they are counted.",
    ]  # fmt: skip


def _budgets(data: dict[str, Any]) -> list[str]:
    lines = ["| budget | rounds | measured / budget, round by round | within [-3 %, 0] |", "|---|---|---|---|"]
    for share, rounds in data["budgets"].items():
        ratios = "; ".join(", ".join(f"{one['measured']:.3f}" for one in plans) for plans in rounds)
        lines.append(f"| {float(share):.0%} of dense | {len(rounds)} | {ratios} | {_verdict(rounds)} |")
    if smallest := data.get("smallest"):
        lines += ["", (f"A budget of 1 us is refused: \"{smallest['said']}\". That plan, built: measured "
                  f"{smallest['measured_us']:.0f} us.")]  # fmt: skip
    return lines


def _verdict(rounds: list[list[dict[str, Any]]]) -> str:
    """By the median of what each plan was measured to take; rounds without names measured no plan again."""
    plans = [one for plans in rounds for one in plans]
    readings: dict[Any, list[float]] = {}
    for number, one in enumerate(plans):
        readings.setdefault(one.get("name", number), []).append(one["measured"])
    measured = [median(found) for found in readings.values()]
    if any(1 - SLACK <= one <= 1 for one in measured):
        return "yes"
    return "met" if any(one <= 1 for one in measured) else "no"


def _ahead(data: dict[str, Any], plan: dict[str, Any]) -> float | None:
    """What joint plans as fast as `plan` keep beyond it; None where none was measured near its latency."""
    joint = [data["plans"]["joint"], *data["joint"].values()]
    times = [one["measured_us"] for one in joint]
    if not (1 - BEYOND) * min(times) <= plan["measured_us"] <= (1 + BEYOND) * max(times):
        return None
    front = np.poly1d(np.polyfit(np.log(times), [one["score"] for one in joint], 2))
    return float(front(np.log(plan["measured_us"]))) - plan["score"]


def _rules(data: dict[str, Any]) -> list[str]:
    dense_us, total = data["dense_us"], data["total"]
    lines = ["| rule | predicted / dense | measured / dense | kept score | joint, as fast | difference | seconds |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, one in data["plans"].items():
        cells = [
            name,
            f"{one['predicted_us'] / dense_us:.3f}",
            f"{one['measured_us'] / dense_us:.3f}",
            f"{one['score'] / total:.2%}",
        ]
        if name == "joint":
            cells += ["", ""]
        elif (ahead := _ahead(data, one)) is None:
            cells += ["not measured", ""]
        else:
            cells += [f"{(one['score'] + ahead) / total:.2%}", f"{ahead / total * 100:+.2f} points"]
        lines.append("| " + " | ".join([*cells, f"{one['seconds']:.2f}"]) + " |")
    return [*lines, *(f"\n{name} has no plan within the budget." for name in data["missed"])]
