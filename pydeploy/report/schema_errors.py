"""What is wrong with a report, in words."""

from __future__ import annotations

from pydantic import ValidationError
from pydantic_core import ErrorDetails


def in_words(error: ValidationError, most: int = 4) -> str:
    """The first `most` entries that are wrong, and how many more there are."""
    details = error.errors(include_url=False)
    rest = f" (and {len(details) - most} more)" if len(details) > most else ""
    return "; ".join(_fact(detail) for detail in details[:most]) + rest


def _fact(detail: ErrorDetails) -> str:
    place = ".".join(map(str, detail["loc"])) or "report"
    if detail["type"] == "missing":
        return f"'{place}' is missing"
    if detail["type"] == "unexpected_keyword_argument":
        return f"'{place}' is unknown"
    text = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    shown = "" if detail["type"] == "value_error" else f", got {str(detail['input'])[:60]!r}"
    return f"'{place}' {text}{shown}"
