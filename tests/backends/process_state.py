"""What of a process a runtime might change, and must not. Run as a script: every use of a backend, state before and after.

    python process_state.py BACKEND ONNX FOLDER

writes one JSON object a line: the use and what differs from before all of them.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import json
import locale
import logging
import os
import platform
import random
import resource
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from pydeploy.backends.base import open_backend
from pydeploy.profiling.profile import profile, random_feeds

_MXCSR = 28  # where glibc's fenv_t has it on x86-64
_CONTROL = 0xFFC0  # rounding, masks, flush-to-zero, denormals-are-zero; the low six bits are sticky exceptions


class Stack(ctypes.Structure):
    _fields_ = [("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


def alternate_stack() -> list[int]:
    """Address, flags and size of this thread's alternate signal stack."""
    found = Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found)) == 0
    return [found.sp or 0, found.flags, found.size]


def floating_point() -> list[int]:
    """Rounding mode, and on x86-64 what the control register says of denormals and traps."""
    libm, state = ctypes.CDLL("libm.so.6"), ctypes.create_string_buffer(512)
    libm.fegetenv(state)
    control = int.from_bytes(state.raw[_MXCSR : _MXCSR + 4], "little") & _CONTROL
    return [libm.fegetround(), control if platform.machine() == "x86_64" else 0]


def masks() -> dict[str, str]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines) if name.startswith("Sig")}


def state() -> dict[str, Any]:
    umask = os.umask(0)
    os.umask(umask)
    logs = logging.getLogger()
    return {
        "alternate stack": alternate_stack(),
        "floating point": floating_point(),
        "signal masks": {name: value for name, value in masks().items() if name != "SigQ"},
        "signal handlers": [str(signal.getsignal(one)) for one in sorted(signal.valid_signals())],
        "affinity": sorted(os.sched_getaffinity(0)),
        "priority": os.getpriority(os.PRIO_PROCESS, 0),
        "locale": [locale.setlocale(locale.LC_ALL), str(locale.localeconv())],
        "folder, umask": [str(Path.cwd()), umask],
        "environment": dict(os.environ),
        "limits": [resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")],
        "descriptors": [os.get_blocking(one) for one in (0, 1, 2)],
        "hooks": [str(one) for one in (sys.excepthook, sys.unraisablehook, threading.excepthook, sys.gettrace())],
        "collector": [gc.isenabled(), gc.get_threshold(), sys.getswitchinterval(), sys.getrecursionlimit()],
        "numpy": [np.geterr(), str(np.random.get_state()[1][:4])],  # noqa: NPY002
        "random": hash(random.getstate()),
        "logging": [logs.level, str(logs.handlers)],
        "faulthandler": faulthandler.is_enabled(),
    }


def main(name: str, onnx: Path, folder: Path) -> None:
    before = json.loads(json.dumps(state()))

    def tell(use: str) -> None:
        now = json.loads(json.dumps(state()))
        print(json.dumps({"use": use, "changed": {k: [before[k], now[k]] for k in now if now[k] != before[k]}}))

    backend, second = open_backend(name, threads=1), open_backend(name, threads=2)
    tell("create")
    engine, other = backend.build(onnx, folder / "net.engine"), second.build(onnx, folder / "other.engine")
    tell("build")
    with backend.open(engine) as session, second.open(other) as wide:
        tell("open")
        feeds = random_feeds(session.inputs)
        for use in ("run", "time", "layers"):
            for one in (session, wide):
                getattr(one, use)(*([feeds] if use == "run" else [feeds, 3]))
            tell(use)
    profile(backend, engine, rounds=2, runs=2)
    tell("profile")
    del backend, session
    gc.collect()
    tell("first one gone")
    del second, wide
    gc.collect()
    tell("both gone")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
