"""OpenVINO imported without its telemetry, which would write to the home folder and call the network at each import."""

from __future__ import annotations

import sys

__all__ = ["ov"]

_TELEMETRY = "openvino_telemetry"
_absent = _TELEMETRY not in sys.modules
if _absent:
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # so an import of it fails, and OpenVINO does without
try:
    import openvino as ov
finally:
    if _absent:
        del sys.modules[_TELEMETRY]
