"""A loaded engine of TensorRT for RTX: its kernels are compiled at the first run, before anything is timed."""

from __future__ import annotations

from collections.abc import Mapping
from logging import getLogger
from pathlib import Path
from time import monotonic
from types import ModuleType
from typing import Any

from pydeploy.backends.tensorrt import compat
from pydeploy.backends.tensorrt.cuda import Launch
from pydeploy.backends.tensorrt.cuda_python import CudaStream
from pydeploy.backends.tensorrt.session import TensorRtSession
from pydeploy.errors import DataError, Mismatch
from pydeploy.files import replacing

log = getLogger(__name__)


class RtxSession(TensorRtSession):
    """As `TensorRtSession`; the runtime itself captures CUDA graphs and keeps compiled kernels beside the engine."""

    def __init__(self, trt: ModuleType, path: Path, batch: int, stream: CudaStream) -> None:
        self.kernels = path.with_name(path.name + ".kernels")
        self._compiled: Any = None
        self.compile_s = 0.0
        """How long the first run took: kernels that ``<engine>.kernels`` does not hold yet are compiled then."""
        super().__init__(trt, path, batch, stream)

    def _load(self, plan: bytes) -> Any:
        if why := compat.invalidity(self._trt, self._runtime, plan):
            raise Mismatch(
                f"this GPU or driver cannot run {self._path} ({why}; {self._messages.reason()}); build it again for it, "
                "with the version of TensorRT for RTX that is installed here"
            )
        return super()._load(plan)

    def _create_context(self, *, profiled: bool) -> Any:
        config, strategy = self._engine.create_runtime_config(), self._trt.CudaGraphStrategy
        config.cuda_graph_strategy = strategy.DISABLED if profiled else strategy.WHOLE_GRAPH_CAPTURE
        if self._compiled is None:
            self._compiled = config.create_runtime_cache()
            try:
                self._compiled.deserialize(self.kernels.read_bytes())
            except OSError:  # not there yet
                log.info("%s: kernels are compiled at the first run", self._path)
        config.set_runtime_cache(self._compiled)
        return self._engine.create_execution_context(config)

    def _prepared(self) -> Launch:
        """Runs once and keeps the compiled kernels, then again, so that graphs are captured before anything is timed."""
        began = monotonic()
        self._enqueue(self._context)
        self._stream.wait()
        self.compile_s = monotonic() - began
        self._keep_kernels()
        for _ in range(2):
            self._enqueue(self._context)
        self._stream.wait()
        self._condition.cuda_graph = True
        handle, context = self._stream.handle, self._context
        return lambda: bool(context.execute_async_v3(handle))

    def _keep_kernels(self) -> None:
        compiled = bytes(memoryview(self._compiled.serialize()))
        try:
            with replacing(self.kernels) as partial:
                partial.write_bytes(compiled)
        except (OSError, DataError) as error:
            log.warning("%s cannot be written (%s): kernels are compiled again next time", self.kernels, error)

    def condition(self) -> Mapping[str, float]:
        """As of `TensorRtSession`, with ``compile_s``, the seconds of the first run."""
        return {**super().condition(), "compile_s": self.compile_s}

    def close(self) -> None:
        """Let go of everything that lives on the device, in the order that TensorRT wants."""
        self._launch = None
        self._compiled = None
        super().close()
