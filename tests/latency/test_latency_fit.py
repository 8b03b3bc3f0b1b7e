"""`latency.fit`: what networks take beyond their layers, against made-up networks whose true costs are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pydeploy.graph import Extent, Op
from pydeploy.latency.table.fit import FEW, Line, factors, lines
from pydeploy.latency.table.store import Network, Provenance, Sample
from pydeploy.timing.records import Timing

KEY = Op("op", "conv", "op.weight", Extent(8), Extent(8), 4, 4).key({})


def made(
    count: int, offset_us: float, missed: float = 0.0, noise: float = 0.0
) -> tuple[list[Sample], list[Network], dict[int, float]]:
    """Networks of 20 of 30 layers; counters leave out up to the share `missed`, more of it in small networks."""
    rng = np.random.default_rng(0)
    true_us = rng.uniform(5, 200, 30)
    samples, networks = [], []
    for i in range(count):
        chosen = rng.choice(30, 20, replace=False)
        layers_us = true_us[chosen]
        kept = 1 - missed * (3000 - layers_us.sum()) / 3000
        provenance = Provenance("probe", f"n{i}", "", "", 0.0)
        read = layers_us * kept * np.exp(noise * rng.standard_normal(20))
        samples += [Sample(replace(KEY, cout=int(k)), Timing(9, float(us), us, us), provenance)
                    for k, us in zip(chosen, read, strict=True)]  # fmt: skip
        whole_us = float(layers_us.sum()) + offset_us
        networks.append(Network("g", "{}", float(read.sum()), Timing(9, whole_us, whole_us, whole_us), provenance))
    return samples, networks, dict(enumerate(true_us))


@pytest.mark.parametrize("missed", [0.0, 0.3])
@pytest.mark.parametrize("offset_us", [-300.0, 0.0, 250.0])
def test_offset_is_what_makes_networks_agree(offset_us: float, missed: float) -> None:
    samples, networks, true_us = made(40, offset_us, missed)
    found = lines(samples, networks)
    assert found["g"].offset_us == pytest.approx(offset_us, abs=1e-6)
    scale = factors(networks, found)
    for sample in samples:
        assert sample.timing.median_us * scale[sample.provenance.probe] == pytest.approx(true_us[sample.key.cout])


def test_noise_moves_the_offset_little() -> None:
    samples, networks, _ = made(50, 250.0, 0.3, noise=0.1)
    assert lines(samples, networks)["g"].offset_us == pytest.approx(250.0, abs=100.0)


def test_an_outlier_does_not_move_the_offset() -> None:
    samples, networks, _ = made(40, 250.0)
    networks[7] = replace(networks[7], whole=networks[7].whole.scaled(3.0))
    assert lines(samples, networks)["g"].offset_us == pytest.approx(250.0, abs=60.0)


def test_few_networks_and_networks_that_share_nothing_get_the_line_through_their_sums() -> None:
    samples, networks, _ = made(FEW - 1, 250.0)
    assert lines(samples, networks)["g"] == Line(1.0, pytest.approx(250.0))
    samples, networks, _ = made(40, 250.0)
    apart = [replace(sample, key=replace(sample.key, cin=i)) for i, sample in enumerate(samples)]
    assert lines(apart, networks)["g"] == Line(pytest.approx(1.0), pytest.approx(250.0))


def test_disturbed_networks_do_not_count() -> None:
    samples, networks, _ = made(40, 250.0)
    bad = [replace(n, whole=replace(n.whole.scaled(1.4), disturbed=True)) for n in networks[:15]]
    assert lines(samples, [*bad, *networks[15:]])["g"].offset_us == pytest.approx(250.0, abs=1e-6)
