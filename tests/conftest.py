"""Settings for all tests."""

from __future__ import annotations

from hypothesis import settings

from trt_bench import world

__all__ = ["world"]

# A slow example says that the machine is busy, not that the code is wrong; speed is measured in bench/.
settings.register_profile("pydeploy", deadline=None, print_blob=True)
settings.load_profile("pydeploy")
