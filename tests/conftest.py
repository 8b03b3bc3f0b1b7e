"""Settings for all tests."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from hypothesis import settings

from portable import portable
from trt_bench import world

__all__ = ["portable", "world"]

# A slow example says that the machine is busy, not that the code is wrong; speed is measured in bench/.
settings.register_profile("pydeploy", deadline=None, print_blob=True)
settings.load_profile("pydeploy")


@pytest.fixture(autouse=True, scope="session")
def impatient() -> Iterator[None]:
    """Tests want rows, not good ones: measuring does not wait for a busy computer to become quiet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pydeploy.timing.reference.SURVEY_S", 0.05)
        patch.setattr("pydeploy.latency.probes.lab.PATIENCE_S", 0.2)
        patch.setattr("pydeploy.latency.probes.measure.AGAIN", 0)
        patch.setattr("pydeploy.profiling.engines.PATIENCE_S", 2.0)
        patch.setattr("pydeploy.profiling.engines.TRIES", 1)
        patch.setattr("pydeploy.planning.closed_loop.RETURN_S", 1.0)
        yield


class Faults(logging.Handler):
    """What users find in their logs fails a test: an operator rule that met what it was not written for."""

    def emit(self, record: logging.LogRecord) -> None:
        raise AssertionError(record.getMessage()) from (record.exc_info[1] if record.exc_info else None)


@pytest.fixture(autouse=True, scope="session")
def faults() -> Iterator[None]:
    logger, handler = logging.getLogger("pydeploy.prune.structure"), Faults(logging.ERROR)
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
