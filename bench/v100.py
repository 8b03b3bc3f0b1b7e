"""Writes docs/figures/v100.md: ResNet-50 on an NVIDIA V100 in FP16, predicted from a published list of measured convolutions.

    python bench/v100.py conv_fp16.txt.gz --batch 64

The list is ``tinynas/latency/op_profiler/V100/conv_data.out.fp16`` of alibaba/lightweight-neural-architecture-search
(Apache-2.0), plain or compressed with gzip: convolutions timed one by one with TensorRT, of which neither version nor
spread is recorded.
"""

from __future__ import annotations

import argparse
import gzip
import math
import tempfile
from bisect import bisect_left
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path

from pydeploy.errors import MissingTiming
from pydeploy.files import write_text
from pydeploy.graph import Graph, OpKey, Widths
from pydeploy.latency.table.foreign import read_lines
from pydeploy.planning.baselines import global_threshold, uniform
from pydeploy.planning.solve import pareto_front

RATIOS = (0.2, 0.3, 0.4, 0.5, 0.6)
POINTS = 160
"""Joint plans, for budgets spread evenly from the smallest possible latency to the dense one."""
RATIOS_LISTED = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Output over input channels of the listed convolutions, but for those of three input channels."""
NEARLY = 1.2
"""Layers more skewed than that by at most this factor count as listed; beyond, the list does not tell them."""


class Published:
    """A latency table from the list. Sizes and widths between listed ones are interpolated; the classifier counts nothing."""

    overhead_us = 0.0

    def __init__(self, path: Path, batch: int, graph: Graph) -> None:
        self.graph = graph
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / "list.txt"
            plain.write_bytes(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
            rows = read_lines(plain, batch)
        self.rows = {key: timing.median_us for key, timing in rows}

    @cached_property
    def sizes(self) -> dict[OpKey, list[int]]:
        found: dict[OpKey, set[int]] = {}
        for key in self.rows:
            found.setdefault(_any_width(replace(key, h=0, w=0)), set()).add(key.h)
        return {key: sorted(sizes) for key, sizes in found.items()}

    @cache  # noqa: B019 - one table lives as long as the process
    def latency_us(self, key: OpKey) -> float:
        if key.kind != "conv":
            return 0.0
        key = replace(key, tail="add" if "add" in key.tail else "")
        sizes = self.sizes.get(_any_width(replace(key, h=0, w=0)), [])
        below = [(h, us) for h in reversed(sizes) if h <= key.h and (us := self._listed(key, h)) is not None][:1]
        above = [(h, us) for h in sizes if h >= key.h and (us := self._listed(key, h)) is not None][:1]
        if not below or not above:
            raise MissingTiming(f"the list tells no {key}")
        (small, one), (large, other) = below[0], above[0]
        part = (key.h**2 - small**2) / (large**2 - small**2) if large > small else 0.0
        return one + part * (other - one)

    def _listed(self, key: OpKey, size: int) -> float | None:
        """Listed, or between listed widths: along the size at each of two ratios of widths, then between the ratios."""
        key = replace(key, h=size, w=size)
        if key in self.rows:
            return self.rows[key]
        curves = self.curves.get(_any_width(key), {})
        if key.cin == 3:
            return _between(curves.get(3.0, []), key.cout)
        size_of, ratio = math.sqrt(key.cin * key.cout), key.cout / key.cin
        if not RATIOS_LISTED[0] / NEARLY <= ratio <= RATIOS_LISTED[-1] * NEARLY:
            return None
        found = [(r, us) for r in RATIOS_LISTED if (us := _between(curves.get(r, []), size_of)) is not None]
        return _between(found, min(max(ratio, RATIOS_LISTED[0]), RATIOS_LISTED[-1]))

    @cached_property
    def curves(self) -> dict[OpKey, dict[float, list[tuple[float, float]]]]:
        """Per layer and ratio: size of its widths and latency, ascending; under 3.0, all outputs of three channels."""
        found: dict[OpKey, dict[float, list[tuple[float, float]]]] = {}
        for key, us in sorted(self.rows.items()):
            curve = found.setdefault(_any_width(key), {})
            ratio, size = (
                (3.0, float(key.cout)) if key.cin == 3 else (key.cout / key.cin, math.sqrt(key.cin * key.cout))
            )
            curve.setdefault(ratio, []).append((size, us))
        return found

    @property
    def widths(self) -> dict[str, tuple[int, ...]]:
        listed = sorted({key.cout for key in self.rows})
        return {g.name: tuple(w for w in listed if w <= g.width) for g in self.graph.prunable}

    def predict_us(self, widths: Widths) -> float:
        return sum(self.latency_us(key) for key in self.graph.keys(widths))


def _any_width(key: OpKey) -> OpKey:
    return replace(key, cin=0, cout=0, groups=min(key.groups, 2))


def _between(points: list[tuple[float, float]], x: float) -> float | None:
    """A power law between the neighbours of `x`; None outside the points."""
    at = bisect_left(points, x, key=lambda point: point[0])
    if at < len(points) and points[at][0] == x:
        return points[at][1]
    if not 0 < at < len(points):
        return None
    (low, one), (high, other) = points[at - 1], points[at]
    return one * (other / one) ** (math.log(x / low) / math.log(high / low))


def resnet50():
    import torch
    from torchvision import models

    import pydeploy as pd

    torch.manual_seed(0)
    net = models.resnet50(weights=None).eval()
    graph = pd.trace(net, torch.randn(1, 3, 224, 224))
    return graph, pd.score(net, graph, "l1")


def section(table, graph, scores, batch):
    dense_us = table.predict_us({})
    total = sum(float(scores[group.name].sum()) for group in graph.prunable)
    front = pareto_front(graph, scores, table, points=POINTS, tolerance=1e-4)
    lines = [f"## Batch {batch}: dense {dense_us / 1e3:.2f} ms", "",
             "| rule | share removed | kept score | predicted, ms | joint plan that keeps as much, ms | joint / rule |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for rule in (uniform, global_threshold):
        for align in (8, 32):
            for ratio in RATIOS:
                name = f"| {rule.__name__.replace('_', ' ')}, rounded to {align} | {ratio:.0%} | "
                try:
                    plan = rule(graph, scores, ratio=ratio, align=align, table=table)
                except MissingTiming:
                    lines.append(name + "needs a layer that the list does not tell | | | |")
                    continue
                enough = [one for one in front if one.score >= plan.score]
                ours = min(enough, key=lambda one: one.latency_us, default=None)
                line = f"{name}{plan.score / total:.2%} | {plan.latency_us / 1e3:.3f} | "
                line += (
                    "none | |"
                    if ours is None
                    else f"{ours.latency_us / 1e3:.3f} | {ours.latency_us / plan.latency_us:.3f} |"
                )
                lines.append(line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("list", type=Path, help="the published list, .txt or .gz")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64], help="1, 32, 64 or 128")
    parser.add_argument("--out", type=Path, default=Path("docs/figures/v100.md"))
    asked = parser.parse_args()
    graph, scores = resnet50()
    lines = ["# ResNet-50 on an NVIDIA V100 in FP16, predicted", "",
             ("Written by `python bench/v100.py conv_fp16.txt.gz` from the measured convolutions of "
              "[alibaba/lightweight-neural-architecture-search](https://github.com/alibaba/lightweight-neural-architecture-search) "
              "(`tinynas/latency/op_profiler/V100/conv_data.out.fp16`, Apache-2.0). Nothing here was measured by pydeploy, "
              "nothing was built: these are sums of convolutions that others timed one by one with TensorRT."), "",
             ("Joint plans take widths that the list holds (8, 16, 32, 48, 64, 96, 128, 160, 192, 256, 384, 512, ...). "
              "Their pairs between the listed ratios of output to input widths (1/4 to 4), other "
              "widths and image sizes (7, 28, 112) are interpolated, which blurs the stairs; over widths that has been found "
              "to be wrong by 6 % in the median and 29 % in the 90th percentile on this list. Pools and the classifier count "
              "nothing. Scores are L1 norms of random weights."), ""]  # fmt: skip
    for batch in asked.batch:
        lines += [*section(Published(asked.list, batch, graph), graph, scores, batch), ""]
    write_text(asked.out, "\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
