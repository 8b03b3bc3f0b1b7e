"""TensorRT's messages, passed on to Python's logging; the last errors are kept for the error that they lead to."""

from __future__ import annotations

from collections import deque
from functools import cache
from logging import DEBUG, ERROR, WARNING, getLogger
from types import ModuleType
from typing import Any

log = getLogger(__name__)
_KEPT = 3


@cache
def make_logger(trt: ModuleType) -> Any:
    """The ILogger of this process, with a method `reason()`: the last errors in one line.

    There is one of them: TensorRT goes on using the first that it is given, and only warns about others.

    TensorRT's information lines are passed on as debug: a build writes hundreds of them.
    """
    levels = {"INTERNAL_ERROR": ERROR, "ERROR": ERROR, "WARNING": WARNING}

    class Messages(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=_KEPT)

        def log(self, severity: Any, msg: str) -> None:
            level = levels.get(severity.name, DEBUG)
            log.log(min(level, WARNING), "%s", msg)  # an error is raised by who notices it
            if level == ERROR:
                self.errors.append(" ".join(msg.split()))

        def reason(self) -> str:
            return "; ".join(self.errors)[-600:] or "TensorRT gave no reason"

    return Messages()
