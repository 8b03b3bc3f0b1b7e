"""Every difference between TensorRT 8.6, 10 and 11 that this package knows, and TensorRT for RTX. No other module asks.

* 8.6: networks need EXPLICIT_BATCH; precision is asked for by flags (FP16, INT8 beside Q/DQ nodes or a calibrator).
* 10.0 to 10.11: the same flags still work; STRONGLY_TYPED networks take their types from the file instead.
* 10.12 on: flags are deprecated, so networks are strongly typed here.
* 11: flags, calibrators and EXPLICIT_BATCH are gone, every network is strongly typed. The *value* of STRONGLY_TYPED
  moved from 1 to 0, and 1 means something else now: flags are used by name only.
* TensorRT for RTX (module `tensorrt_rtx`) follows the rules of 10.16 (1.4) or 11 (1.7). Its builder needs no GPU and measures nothing, so
  there are no timing cache and no search; it is told for which GPUs to build. Kernels are compiled on the device, at first use.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from pydeploy.errors import BackendUnavailable, ConfigError

OLDEST = (8, 6)
TYPED_SINCE = (10, 12)
ONLY_TYPED_SINCE = (11, 0)

PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8")
"""int8: what the Q/DQ nodes do not cover runs in fp16."""

NUMPY_NAMES: Mapping[str, str] = {
    "FLOAT": "float32", "HALF": "float16", "INT8": "int8", "INT32": "int32", "INT64": "int64", "BOOL": "bool",
    "UINT8": "uint8",
}  # fmt: skip
"""NumPy dtype of a `DataType` by its name; TensorRT's own `nptype` raises for the others."""

INSTALL = (
    "pip install 'pydeploy-hil[tensorrt]' (pip fetches TensorRT's libraries from NVIDIA's own package index); on a Jetson use "
    "JetPack's TensorRT: python3 -m venv --system-site-packages"
)

Version = tuple[int, int]


INSTALL_RTX = "pip install 'pydeploy-hil[rtx]'"
OLDEST_RTX = (1, 4)


def load_rtx() -> ModuleType:
    """The module `tensorrt_rtx`; `BackendUnavailable` where it is missing, incomplete or too old."""
    try:
        trt = importlib.import_module("tensorrt_rtx")
    except ImportError as error:
        raise BackendUnavailable(
            f"backend 'tensorrt-rtx' needs the package 'tensorrt-rtx' ({error}): {INSTALL_RTX}"
        ) from None
    if parse_version(trt.__version__) < OLDEST_RTX:
        raise BackendUnavailable(
            f"TensorRT for RTX {trt.__version__} is too old, 1.4 or newer is needed: {INSTALL_RTX}"
        )
    return trt


def load() -> ModuleType:
    """The module `tensorrt`; `BackendUnavailable` where it is missing, incomplete or too old."""
    try:
        trt = importlib.import_module("tensorrt")
    except ImportError as error:  # ModuleNotFoundError, or a library of its own that it cannot find
        raise BackendUnavailable(f"backend 'tensorrt' needs the package 'tensorrt' ({error}): {INSTALL}") from None
    if version(trt) < OLDEST:
        raise BackendUnavailable(f"TensorRT {trt.__version__} is too old, 8.6 or newer is needed: {INSTALL}")
    return trt


def cuda_of(trt: ModuleType) -> int | None:
    """First number of the CUDA version that an installed module was built with, by its package's name (``tensorrt-cu13``).

    None where it is no such package.
    """
    if not getattr(trt, "__file__", None):
        return None
    found = [re.match(rf"{trt.__name__}_cu(\d+)(_\w+)?-", path.name)
             for path in Path(str(trt.__file__)).parents[1].glob(f"{trt.__name__}_cu*.dist-info")]  # fmt: skip
    return min((int(match[1]) for match in found if match), default=None)


DRIVERS = {12: 525, 13: 580}
"""The oldest release of NVIDIA's driver for each first number of CUDA's versions (CUDA's release notes)."""


def check_driver(trt: ModuleType, supported: str) -> None:
    """Raise `BackendUnavailable` where the driver, which supports CUDA up to `supported` (``12.4``), is too old for the module.

    To be asked before its runtime is made, which fails with a number, or crashes. Within one first number any driver will do.
    """
    built, have = cuda_of(trt), int(supported.split(".")[0])
    if built is None or have >= built:
        return
    package = trt.__name__.replace("_", "-")
    release = f" to release {DRIVERS[built]} or newer" if built in DRIVERS else ""
    other = f", or pip install {package}-cu{have} in its place" if have in DRIVERS else ""
    raise BackendUnavailable(
        f"the NVIDIA driver supports CUDA up to {supported}, and {package} {trt.__version__} is built with CUDA {built}: "
        f"update the driver{release}{other}"
    )


def version(trt: ModuleType) -> Version:
    """Major and minor number; of TensorRT for RTX those of the TensorRT whose rules it follows."""
    if trt.__name__ != "tensorrt_rtx":
        return parse_version(trt.__version__)
    return (10, 16) if hasattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH") else ONLY_TYPED_SINCE


def searches(trt: ModuleType) -> bool:
    """Whether the builder measures kernels on the GPU to choose among them."""
    return trt.__name__ != "tensorrt_rtx"


def known_gpus(trt: ModuleType) -> tuple[str, ...]:
    """Compute capabilities that TensorRT for RTX builds for, oldest first: ``sm75``."""
    names = [name for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    return tuple(name.lower() for name in sorted(names, key=lambda name: int(name[2:])))


def set_gpus(trt: ModuleType, config: Any, gpus: Sequence[str]) -> None:
    """Have the engine built for these of `known_gpus`, or for ``current``, the GPU at hand."""
    config.num_compute_capabilities = len(gpus)
    for index, name in enumerate(gpus):
        if not config.set_compute_capability(trt.ComputeCapability.__members__[name.upper()], index):
            raise ConfigError(f"TensorRT for RTX {trt.__version__} does not build for {name} beside {', '.join(gpus)}")


def invalidity(trt: ModuleType, runtime: Any, plan: bytes) -> str:
    """Why the GPU at hand cannot run an engine of TensorRT for RTX, in the words of its runtime; '' where it can."""
    verdict, bits = runtime.get_engine_validity(plan)
    if verdict.name != "INVALID":
        return ""
    reasons = [name for name, value in trt.EngineInvalidityDiagnostics.__members__.items() if int(bits) & int(value)]
    return ", ".join(name.lower().replace("_", " ") for name in reasons) or "no reason was given"


def parse_version(text: str) -> Version:
    """``10.3.0`` -> ``(10, 3)``."""
    match = re.match(r"(\d+)\.(\d+)", text)
    if match is None:
        raise ConfigError(f"a TensorRT version looks like 10.3, got '{text}'")
    return int(match[1]), int(match[2])


def stated_version(text: str) -> Version:
    """What a user says of another machine's TensorRT; `ConfigError` for what is no version or too old."""
    if re.fullmatch(r"\d+\.\d+(\.\d+)*", text) is None:
        raise ConfigError(f"a TensorRT version looks like 10.3, got '{text}'")
    found = parse_version(text)
    if found < OLDEST:
        raise ConfigError(f"TensorRT {text} is too old, pydeploy knows {OLDEST[0]}.{OLDEST[1]} and newer")
    return found


def has_calibrators(version: Version) -> bool:
    """Whether int8 can come from a calibrator or its cache, instead of Q/DQ nodes."""
    return version < ONLY_TYPED_SINCE


def cache_header(trt: ModuleType) -> str:
    """First line of the calibration caches that this version reads: ``TRT-8601-EntropyCalibration2``."""
    major, minor, patch = (*map(int, trt.__version__.split(".")[:3]), 0)[:3]
    number = major * 1000 + minor * 100 + patch if major < 10 else major * 10000 + minor * 100 + patch
    return f"TRT-{number}-EntropyCalibration2"


def is_typed(version: Version, *, typed_file: bool) -> bool:
    """Whether a network is built strongly typed: its types come from the file and from nothing else."""
    return version >= TYPED_SINCE or (typed_file and version >= (10, 0))


def check_precision(
    version: Version, precision: str, capability: Version | None = None, backend: str = "tensorrt"
) -> None:
    """Raise `BackendUnavailable` unless this version, on a GPU of this compute capability, has the precision.

    None where the GPU is not known.
    """
    if precision not in PRECISIONS:
        raise BackendUnavailable(f"backend '{backend}' runs {', '.join(PRECISIONS)}; '{precision}' was asked for")
    if precision == "bf16" and version < (10, 0):
        raise BackendUnavailable(f"bf16 needs TensorRT 10 or newer, this is {version[0]}.{version[1]}; use fp16")
    if precision in ("bf16", "tf32") and capability is not None and capability < (8, 0):
        raise BackendUnavailable(
            f"{precision} needs compute capability 8.0 (Ampere) or newer, this GPU has {capability[0]}.{capability[1]}; "
            "use fp16"
        )


def network_flags(trt: ModuleType, *, typed: bool) -> int:
    """Argument of `Builder.create_network`."""
    creation = trt.NetworkDefinitionCreationFlag
    if version(trt) >= ONLY_TYPED_SINCE:
        return 0
    bits = 1 << int(creation.EXPLICIT_BATCH)
    return bits | 1 << int(creation.STRONGLY_TYPED) if typed else bits


def set_precision(trt: ModuleType, config: Any, precision: str, *, typed: bool) -> None:
    """Flags for `precision`. A strongly typed network takes none of them but TF32, which is on by default."""
    flag = trt.BuilderFlag
    if precision == "fp32":
        config.clear_flag(flag.TF32)
    if typed:
        return
    if precision in ("fp16", "int8"):
        config.set_flag(flag.FP16)
    if precision == "bf16":
        config.set_flag(flag.BF16)
    if precision == "int8":
        config.set_flag(flag.INT8)


def calibrator_base(trt: ModuleType) -> Any:
    """The class that calibrators derive from; `ConfigError` where this version has none."""
    check_calibration(version(trt), trt.__version__)
    return trt.IInt8EntropyCalibrator2


def check_stated(version: Version, precision: str, *, implicit: bool) -> None:
    """As `check_precision` and, for int8 from a calibration cache, `check_calibration`, for another machine's version."""
    check_precision(version, precision)
    if implicit:
        check_calibration(version, f"{version[0]}.{version[1]}")


def check_calibration(version: Version, text: str) -> None:
    """Raise `ConfigError` where this version, called `text`, has no calibrators."""
    if not has_calibrators(version):
        raise ConfigError(
            f"TensorRT {text} has no calibrators any more; quantize the ONNX file instead ('pydeploy quantize')"
        )


def set_calibrator(config: Any, calibrator: Any, profile: Any) -> None:
    """Implicit quantization by a calibrator, at the shapes of `profile` (None for static shapes)."""
    config.int8_calibrator = calibrator
    if profile is not None:
        config.set_calibration_profile(profile)


def watch_progress(trt: ModuleType, config: Any, step: Callable[[str, int, int], bool]) -> None:
    """Have `step` (phase, steps done, steps in all) -> go on? called during the build, where the version can."""
    if not hasattr(trt, "IProgressMonitor"):
        return

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.sizes: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            self.sizes[phase_name] = num_steps

        def step_complete(self, phase_name: str, step_: int) -> bool:
            return step(phase_name, step_ + 1, self.sizes.get(phase_name, 0))

        def phase_finish(self, phase_name: str) -> None:
            self.sizes.pop(phase_name, None)

    config.progress_monitor = Monitor()


def parser_error(error: Any, names: list[str]) -> str:
    """One line of an `OnnxParser`'s error with the node it is about; `names` are the file's nodes in order."""
    index = error.node()
    place = f"node {index}"
    if 0 <= index < len(names):
        place = f"node '{names[index]}'"
    if hasattr(error, "node_operator"):  # 10.0 on
        place += f" ({error.node_operator()})" if error.node_operator() else ""
    return f"{place}: {' '.join(error.desc().split())}"


def numpy_name(dtype: Any) -> str | None:
    """NumPy's name of a `DataType`; None where NumPy has no such type."""
    return NUMPY_NAMES.get(dtype.name)


def trtexec_switches(version: Version, precision: str, *, typed_file: bool, implicit: bool = False) -> list[str]:
    """Options of trtexec that differ between versions: precision, and the defaults that 11 turned round.

    `implicit`: int8 ranges come from a calibration cache, which a strongly typed network does not take.
    """
    switches = ["--noTF32"] if precision == "fp32" else []
    if version >= ONLY_TYPED_SINCE:  # CUDA graph, spin wait, no transfers and a separate profile run are the default
        return switches
    switches += ["--noDataTransfers", "--useCudaGraph", "--useSpinWait", "--separateProfileRun"]
    if not implicit and is_typed(version, typed_file=typed_file):
        return ["--stronglyTyped", *switches]
    flags = {"fp16": ["--fp16"], "bf16": ["--bf16"], "int8": ["--fp16", "--int8"]}
    return [*flags.get(precision, []), *switches]


def trtexec_version(banner: str) -> Version | None:
    """The version in ``[TensorRT v100300]`` or ``[TensorRT v8601]``, the first line of trtexec's output."""
    match = re.search(r"TensorRT v(\d{4,6})", banner)
    if match is None:
        return None
    number = int(match[1])
    # Up to 8 and 9 there was one digit for the minor number, since 10 there are two.
    return (number // 1000, number // 100 % 10) if number < 10000 else (number // 10000, number // 100 % 100)
