"""A fault in a rule is told to the user and freezes what the operator touches; it is no reason like others."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import pydeploy.prune.structure.propagate as propagate
from pydeploy.prune.structure.state import Tracer
from pydeploy.prune.structure.tape import Call
from pydeploy.prune.structure.trace import trace


class Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def messages() -> Iterator[list[logging.LogRecord]]:
    """What a user's log has; faults fail no test meanwhile."""
    logger, handler = logging.getLogger("pydeploy.prune.structure"), Messages()
    strict = logger.handlers[:]
    logger.handlers = [handler]
    yield handler.records
    logger.handlers = strict


def broken(_tracer: Tracer, _call: Call) -> None:
    raise KeyError("of no shape")


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3))


def test_a_fault_is_logged_with_operator_and_place_and_freezes(
    monkeypatch: pytest.MonkeyPatch, messages: list[logging.LogRecord]
) -> None:
    monkeypatch.setattr(propagate, "RULES", {**propagate.RULES, "tanh": broken})
    graph = trace(net(), torch.zeros(1, 3, 12, 12))
    assert {group.name for group in graph.prunable} == {"2"}
    assert "fault" in graph.frozen["0"]
    assert messages
    assert all("tanh at 1" in record.getMessage() for record in messages)
    assert all(record.exc_info is not None and isinstance(record.exc_info[1], KeyError) for record in messages)


def test_a_fault_fails_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(propagate, "RULES", {**propagate.RULES, "tanh": broken})
    with pytest.raises(AssertionError, match="tanh at 1"):
        trace(net(), torch.zeros(1, 3, 12, 12))
