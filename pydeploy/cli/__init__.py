"""The command line: a thin skin over the library. Only here are `DeployError`s caught and printed.

Exit codes: 0 done, 1 a check found something, 2 bad input or an interrupted run, as one clear message.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from types import FrameType

from pydeploy.errors import DeployError

TRAINING = ("torch", "torchvision", "accelerate", "safetensors", "onnxscript")
"""Packages of the extra 'train'; what runs on a target does without."""


class _Interrupted(BaseException):
    """Ctrl-C. Not KeyboardInterrupt, which the command line library would turn into a bare 'Aborted!'."""


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise _Interrupted


def main() -> None:
    """Entry point of ``pydeploy``."""
    before = signal.signal(signal.SIGINT, _interrupt)
    try:
        _run()
    finally:
        signal.signal(signal.SIGINT, before)


def _run() -> None:
    # Long steps tell how far they are through their log; other packages only when something is wrong.
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("pydeploy").setLevel(logging.INFO)
    try:
        from pydeploy.cli.app import app

        app()
    except DeployError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in TRAINING:
            raise
        _fail(f"this needs PyTorch and its companions ('{error.name}' is missing): pip install 'pydeploy[train]'")
    except (_Interrupted, KeyboardInterrupt):
        _fail("interrupted; finished stages and checkpoints are kept, 'pydeploy run ... --resume' goes on from there")
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except MemoryError:
        _fail("out of memory; use a smaller batch or fewer probes at once")
    except OSError as error:
        _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")


def _fail(text: str) -> None:
    try:
        sys.stdout.flush()
    except OSError:  # nothing more can be written there: a full disk, a closed pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.stderr.write(f"error: {text}\n")
    sys.exit(2)
