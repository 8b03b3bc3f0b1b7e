"""The `Backend` for TensorRT: one precision, one batch size, the first visible GPU.

* An engine file is TensorRT's plan as it is, so that ``trtexec --loadEngine`` reads it too; ``<engine>.build.json``
  tells how it was built. A plan runs only with the version and device that built it, and is executable code: load
  only what you built or trust.
* fp16 and bf16 take a float file: where the version asks for typed networks, types are written into a copy of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from pydeploy.backends.base import Backend, Engine
from pydeploy.backends.tensorrt import compat
from pydeploy.backends.tensorrt.build import Built, build
from pydeploy.backends.tensorrt.calibration import MakeCalibrator, cache_reader, uploader
from pydeploy.backends.tensorrt.checkup import checkup
from pydeploy.backends.tensorrt.cuda import Stream
from pydeploy.backends.tensorrt.driver import find_gpu
from pydeploy.backends.tensorrt.options import Options
from pydeploy.backends.tensorrt.session import TensorRtSession
from pydeploy.backends.tensorrt.sources import read
from pydeploy.errors import BackendUnavailable, ConfigError
from pydeploy.files import sha256
from pydeploy.onnxfile.read import input_specs, with_batch
from pydeploy.timing.records import Target


class TensorRt(Backend):
    """TensorRT bound to one precision and batch size. There are no threads: one stream of one GPU."""

    name = "tensorrt"
    threads = 1
    options: Options
    takes_options = True
    int8_style = "tensorrt"
    beside_int8 = "fp16"
    halves = ("fp16", "bf16")
    dynamic_batch = True

    def __init__(self, precision: str = "fp32", batch: int = 1, threads: int = 0, options: str = "") -> None:
        if threads > 1:
            raise BackendUnavailable(
                f"backend 'tensorrt' times one stream; {threads} threads were asked for, leave it 0"
            )
        self._gpu = find_gpu()  # first: without a driver TensorRT itself must not be touched
        self._trt = compat.load()
        compat.check_driver(self._trt, self._gpu.driver)
        compat.check_precision(compat.version(self._trt), precision, self._gpu.capability)
        self.precision = precision
        self.batch = batch
        self.options = Options.parse(options)
        if self.options.calibration and precision != "int8":
            raise ConfigError(f"a calibration cache is for int8; tensorrt:{precision} was asked for")

        self.implicit = bool(self.options.calibration)

    @classmethod
    def align_at(cls, precision: str, options: str = "") -> int:
        return Options.parse(options).align(precision)

    @classmethod
    def checkup(cls) -> Mapping[str, str]:
        return checkup()

    def target(self) -> Target:
        chosen = {"options": str(self.options)} if str(self.options) else {}
        facts = {**self._gpu.facts, **chosen}
        return Target(self._gpu.name, self.name, self._trt.__version__, self.precision, self.batch, self.threads, facts)

    def build(self, onnx: Path, out: Path, calibrator: MakeCalibrator | None = None) -> Engine:
        """With `calibrator`, TensorRT 8.6 to 10 finds the ranges of a float file itself (implicit int8)."""
        onnx, out = Path(onnx), Path(out)
        cache = self.options.cache_file(self._trt.__version__, self._gpu.name, self._gpu.capability)
        built = self._built(onnx, cache, calibrator)
        facts = {"gpu_fallback": list(built.gpu_fallback), "timing_cache": str(cache), "options": str(self.options)}
        return built.save(Engine(out, self.name, self.target(), sha256(onnx)), facts)

    def _built(self, onnx: Path, cache: Path, make: MakeCalibrator | None) -> Built:
        options = self.options
        if make is None:
            reader = cache_reader(self._trt, Path(options.calibration)) if options.calibration else None
            source = read(self._trt, onnx, self.precision, self.batch, implicit=reader is not None)
            return build(self._trt, source, self.precision, options, cache, reader)
        base = compat.calibrator_base(self._trt)
        if self.precision != "int8" or options.calibration:
            asked = f"tensorrt:{self.precision}" + (f",{options}" if str(options) else "")
            raise ConfigError(f"calibration samples are for tensorrt:int8 without a calibration cache, got {asked}")
        source, stream = read(self._trt, onnx, self.precision, self.batch, implicit=True), Stream()
        try:
            upload = uploader(stream, input_specs(with_batch(source.model, self.batch), onnx))
            return build(self._trt, source, self.precision, options, cache, make(base, upload))
        finally:
            stream.close()

    @contextmanager
    def open(self, engine: Engine) -> Iterator[TensorRtSession]:
        engine.require(self.target())
        with (
            closing(Stream()) as stream,
            closing(TensorRtSession(self._trt, engine.path, self.batch, stream)) as session,
        ):
            yield session
