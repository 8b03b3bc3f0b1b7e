"""Writes docs/v100.md: ResNet-50 on an NVIDIA V100 in FP16, predicted from a published list of measured convolutions.

    python bench/v100.py conv_fp16.txt.gz --batch 64

The list is ``tinynas/latency/op_profiler/V100/conv_data.out.fp16`` of alibaba/lightweight-neural-architecture-search
(Apache-2.0), plain or compressed with gzip: convolutions timed one by one with TensorRT, of which neither version nor
spread is recorded.
"""

from __future__ import annotations

import argparse
import gzip
import tempfile
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path

from pydeploy.baselines import global_threshold, uniform
from pydeploy.errors import MissingTiming
from pydeploy.files import write_text
from pydeploy.graph import Graph, OpKey
from pydeploy.latency.foreign import read_lines
from pydeploy.latency.interpolation import Known, Lookup
from pydeploy.solve import pareto_front, predict_us

RATIOS = (0.2, 0.3, 0.4, 0.5, 0.6)
POINTS = 160
"""Joint plans, for budgets spread evenly from the smallest possible latency to the dense one."""
SKEW = 4.0
"""The list holds no layers whose widths differ by more than this factor; `NEARLY` of them count as this skewed."""
NEARLY = 1.2


class Published:
    """A latency table from the list. Sizes and widths between listed ones are interpolated; the classifier counts nothing."""

    def __init__(self, path: Path, batch: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / "list.txt"
            plain.write_bytes(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
            rows = read_lines(plain, batch)
        self.rows = {key: Lookup(t.median_us, 1, 1, 0.0) for key, t in rows}
        self.known = Known(self.rows)

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
        key = replace(key, h=size, w=size)
        if SKEW < key.cin / key.cout <= NEARLY * SKEW:
            key = replace(key, cout=round(key.cin / SKEW))
        elif SKEW < key.cout / key.cin <= NEARLY * SKEW and key.cin > 3:
            key = replace(key, cin=round(key.cout / SKEW))
        found = self.known.find(key)
        return None if found is None else found.latency_us

    def overhead_us(self, graph: Graph) -> float:
        return 0.0

    def widths(self, graph: Graph) -> dict[str, tuple[int, ...]]:
        listed = sorted({key.cout for key in self.rows})
        return {g.name: tuple(w for w in listed if w <= g.width) for g in graph.prunable}


def _any_width(key: OpKey) -> OpKey:
    return replace(key, cin=0, cout=0, groups=min(key.groups, 2))


def resnet50():
    import torch
    from torchvision import models

    import pydeploy as pd

    torch.manual_seed(0)
    net = models.resnet50(weights=None).eval()
    graph = pd.trace(net, torch.randn(1, 3, 224, 224))
    return graph, pd.score(net, graph, "l1")


def section(table, graph, scores, batch):
    dense_us = predict_us(graph, {}, table)
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
    parser.add_argument("--out", type=Path, default=Path("docs/v100.md"))
    asked = parser.parse_args()
    graph, scores = resnet50()
    lines = ["# ResNet-50 on an NVIDIA V100 in FP16, predicted", "",
             ("Written by `python bench/v100.py conv_fp16.txt.gz` from the measured convolutions of "
              "[alibaba/lightweight-neural-architecture-search](https://github.com/alibaba/lightweight-neural-architecture-search) "
              "(`tinynas/latency/op_profiler/V100/conv_data.out.fp16`, Apache-2.0). Nothing here was measured by pydeploy, "
              "nothing was built: these are sums of convolutions that others timed one by one with TensorRT."), "",
             ("Joint plans take widths that the list holds (8, 16, 32, 48, 64, 96, 128, 160, 192, 256, 384, 512, ...). Other "
              "widths and image sizes (7, 28, 112) are interpolated, which blurs the stairs; over widths that has been found "
              "to be wrong by 6 % in the median and 29 % in the 90th percentile on this list. Pools and the classifier count "
              "nothing. Scores are L1 norms of random weights."), ""]  # fmt: skip
    for batch in asked.batch:
        lines += [*section(Published(asked.list, batch), graph, scores, batch), ""]
    write_text(asked.out, "\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
