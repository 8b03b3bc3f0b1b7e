"""The command line: a thin skin over the library. Only here are `DeployError`s caught and printed.

Exit codes: 0 done, 1 a check found something, 2 bad input or an interrupted run, as one clear message.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
from types import FrameType

from pydeploy.errors import BackendUnavailable, ConfigError, DeployError

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
        _refuse_empty(sys.argv[1:])
        _check_typer()
        from pydeploy.cli.app import app

        app()
    except DeployError as error:
        _fail(str(error))
    except ImportError as error:
        _fail(_what_is_missing(error))
    except (_Interrupted, KeyboardInterrupt):
        _fail("interrupted; finished stages and checkpoints are kept, 'pydeploy run ... --resume' goes on from there")
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except MemoryError:
        _fail("out of memory; use a smaller batch or fewer probes at once")
    except OSError as error:
        _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")


def _refuse_empty(arguments: list[str]) -> None:
    """Raise `ConfigError` for ``''``, such as an unset variable of a shell: as a path it would mean the folder one is in."""
    if "" not in arguments:
        return
    before = arguments[: arguments.index("")]
    where = before[-1] if before and before[-1].startswith("-") else "an argument"
    raise ConfigError(f"{where} is empty; give its value or leave it out (is a variable of the shell unset?)")


def _what_is_missing(error: ImportError) -> str:
    """A sentence on a package that is missing or does not fit; a module of our own that does not fit is our fault."""
    package = (error.name or "").split(".")[0]
    if error.name == "pydeploy._core":
        return str(error)
    if package == "pydeploy":
        raise error
    if isinstance(error, ModuleNotFoundError) and package in TRAINING:
        return f"this needs PyTorch and its companions ('{error.name}' is missing): pip install 'pydeploy-hil[train]'"
    name = {"yaml": "pyyaml", "PIL": "pillow", "onnx_graphsurgeon": "onnx-graphsurgeon"}.get(package, package)
    return f"the package '{package}' is missing or does not fit ({error}): pip install --upgrade {name}"


def _check_typer() -> None:
    """Versions of typer below 0.19.2 do not know click 8.2 and later: they would ignore flags without a word."""
    from importlib.metadata import version

    typer = tuple(int(part) for part in re.findall(r"\d+", version("typer"))[:3])
    if typer < (0, 19, 2) and not re.match(r"8\.[01](\.|$)", click := version("click")):
        raise BackendUnavailable(
            f"typer {version('typer')} does not work with click {click}: pip install --upgrade typer"
        )


MOST_LINES, MOST_IN_A_WORD = 12, 240


def _fail(text: str) -> None:
    try:
        sys.stdout.flush()
    except OSError:  # nothing more can be written there: a full disk, a closed pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.stderr.write(f"error: {_readable(text)}\n")
    sys.exit(2)


def _readable(text: str) -> str:
    """Without colours and control characters; what fills screens, such as other packages' errors, is cut in the middle."""
    text = re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]", "", text)
    text = "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text.expandtabs())
    text = re.sub(rf"\S{{{MOST_IN_A_WORD + 1},}}", lambda word: f"{word[0][:80]}...{word[0][-80:]}", text)
    lines = text.splitlines()
    if len(lines) > MOST_LINES:
        lines[MOST_LINES // 2 : -MOST_LINES // 2] = [f"... ({len(lines) - MOST_LINES} lines left out)"]
    return "\n".join(lines)
