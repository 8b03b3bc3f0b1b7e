"""Latencies that others published, one measured convolution a line, -1 where there is no measurement:

``{conv_type,batch,in_c,in_h,in_w,out_c,kernel,stride,elementwise_fused} milliseconds``
"""

from __future__ import annotations

import re
from pathlib import Path

from pydeploy.errors import DataError
from pydeploy.graph import OpKey
from pydeploy.timing.records import Timing

_LINE = re.compile(r"\{(Regular|Depthwise)((?:,\d+){8})\}\s+(-?[\d.]+(?:[eE][-+]?\d+)?)")


def read_lines(path: Path, batch: int) -> list[tuple[OpKey, Timing]]:
    """The convolutions of `path` at `batch`, in the file's order; neither n nor spread is known, so n is 1.

    The file gives input sizes; a padded convolution's output is ``ceil(input / stride)``. A fused residual sum is the
    key's tail 'add'. Raises `DataError`, naming the line, for anything else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path} as text ({error})") from None
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise DataError(
                f"{path}:{number}: '{line.strip()[:80]}' is not '{{conv_type,batch,in_c,in_h,in_w,out_c,kernel,stride,"
                "elementwise_fused} milliseconds'"
            )
        size, cin, height, width, cout, kernel, stride, fused = map(int, match[2].split(",")[1:])
        time_us = float(match[3]) * 1e3
        if size == batch and time_us > 0:
            groups = cin if match[1] == "Depthwise" else 1
            key = OpKey("conv", cin, cout, -(-height // stride), -(-width // stride), (kernel, kernel), (stride, stride),
                        (1, 1), groups, "add" if fused else "")  # fmt: skip
            found.append((key, Timing(1, time_us, time_us, time_us, interval=1.0)))
    if not found:
        raise DataError(f"{path} holds no measured layer at batch {batch}")
    return found
