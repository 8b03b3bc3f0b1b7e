from __future__ import annotations

from importlib.metadata import version

import pytest

from pydeploy import _core


def test_the_version_is_the_package_version():
    assert _core.__version__ == version("pydeploy-hil")


def test_the_reference_kernel_takes_time_that_grows_with_its_repeats():
    # A hundredfold difference is far above any disturbance; the fastest of five is compared.
    short = min(_core.reference_kernel_us(10) for _ in range(5))
    long = min(_core.reference_kernel_us(1000) for _ in range(5))
    assert 0 < short < long


@pytest.mark.parametrize("repeats", [0, -3])
def test_the_reference_kernel_needs_a_repeat(repeats):
    with pytest.raises(ValueError, match=f"repeats must be at least 1, not {repeats}"):
        _core.reference_kernel_us(repeats)
