"""A latency test in continuous integration: the same engine passes, a slower one fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TEST = "def test_latency(engine_benchmark):\n    engine_benchmark('model.engine')\n"
LIMIT = ("--benchmark-compare", "--benchmark-compare-fail=median:30%")


def pydeploy(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pydeploy", *arguments], check=True, stdout=subprocess.DEVNULL)


def session(*options: str) -> str:
    """What pytest says: that the test passed, that it regressed, or all of its text."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "test_latency.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    text = done.stdout + done.stderr
    return "passed" if done.returncode == 0 else "regressed" if "Performance has regressed" in text else text


def main() -> None:
    for name, width in (("first", 16), ("slower", 32)):
        pydeploy("export", "pydeploy:resnet8", "--input", "1x3x32x32", "-o", f"width={width}", "--out", f"{name}.onnx")
    Path("test_latency.py").write_text(TEST)
    build = ("--target", "onnxruntime:fp32", "--threads", "1", "--out", "model.engine")
    pydeploy("build", "first.onnx", *build)
    found = [session("--benchmark-autosave"), session(*LIMIT)]
    pydeploy("build", "slower.onnx", *build)
    found.append(session(*LIMIT))
    print(found)
    assert found == ["passed", "passed", "regressed"]


if __name__ == "__main__":
    main()
