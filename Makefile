# Two commands do everything on a machine with Python >= 3.10 and a C++20 compiler: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= runs
comma := ,
SOURCES := $(wildcard csrc/*/*.cpp csrc/*/*.hpp)

.PHONY: help setup develop docs demo demo-full demo-openvino demo-segmentation demo-detection demo-inspection weights newcomer data test lint types unit package floors sanitize sanitize-memory sanitize-threads trt-contract trt-files gpu-check gpu-check-rtx bench figures format clean

help:
	@echo "make setup          prepare $(VENV) for the demo (a few minutes, mostly PyTorch); 'make test' adds what else it needs"
	@echo "make demo           prune a trained network to half its latency, fine-tune, quantize, report (4 to 6 minutes)"
	@echo "make demo-full      train as well, and make the other points of the README's table (15 to 28 minutes)"
	@echo "make demo-openvino  the demo for OpenVINO"
	@echo "make demo-segmentation  masks of garments on a drawn canvas (10 to 15 minutes)"
	@echo "make demo-detection  boxes of garments on a drawn canvas (10 to 15 minutes)"
	@echo "make demo-inspection  defects of drawn cloth (about 10 minutes)"
	@echo "make test           lint, types, all tests, a wheel in a clean environment (10 to 20 minutes)"
	@echo "make bench          benchmarks with their baselines (keep the machine quiet)"
	@echo "make newcomer       four jobs as strangers would do them, on the wheel in clean environments (2 to 4 minutes)"
	@echo "make floors         the tests that need no PyTorch, with the lowest versions that pyproject.toml states (2 minutes)"
	@echo "make sanitize       the C++ core under AddressSanitizer, UBSan and ThreadSanitizer (4 to 6 minutes)"
	@echo "make trt-contract   the TensorRT backend against the real bindings of eight versions (no GPU needed)"
	@echo "make trt-files      every family of networks in every kind of file, judged by NVIDIA's parser and builder (an hour, no GPU)"
	@echo "make gpu-check      on a machine with an NVIDIA GPU: everything that pydeploy promises there, as one table"
	@echo "make docs           the documentation as a site, build/site; the reference comes from the code"
	@echo "make gpu-check-rtx  the same with TensorRT for RTX, on a GeForce or RTX card"
	@echo "make format         format Python and C++"

setup: $(VENV)/.ready

# What `make test` and developers need beyond that.
develop: $(VENV)/.developed

$(VENV)/.ready: pyproject.toml CMakeLists.txt $(SOURCES)
	@$(call installed,train)
	@touch $@

$(VENV)/.developed: pyproject.toml CMakeLists.txt $(SOURCES)
	@$(call installed,train$(comma)dev$(comma)bench$(comma)openvino)
	@touch $(VENV)/.ready $@

# $(1): extras. `pydeploy` was this distribution's name until 0.1.
define installed
	echo "setup: preparing $(VENV) with the extras $(1) (PyTorch is several GB; this can take some minutes)"; \
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || exit; \
	$(BIN)/python -c "import sys; sys.exit(sys.version_info < (3, 10))" || { echo "Python >= 3.10 is needed: make PYTHON=python3.11 ..."; exit 2; }; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'scikit-build-core>=0.10' 'pybind11>=2.13' 'cmake>=3.26' 'ninja>=1.11' || exit; \
	$(BIN)/python -m pip uninstall --quiet --yes --disable-pip-version-check pydeploy 2>/dev/null; \
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[$(1)]'
endef

# Fashion-MNIST: $PYDEPLOY_DATA, Debian's package, or torchvision's download; the package is installed where that is allowed.
data: setup
	@$(BIN)/python -m pydeploy.data.fetch

demo: setup data
	@echo "demo: 4 to 6 minutes on two cores; progress below. An interrupted demo goes on with 'make demo'."
	@$(BIN)/pydeploy run demo --out $(OUT)/demo --resume

# Torch-Pruning, a point of comparison, is in the extra 'bench'; without it that point is left out.
demo-full: develop data
	@echo "demo-full: 15 to 28 minutes on two cores (0.2 to 0.4 s a training step in bfloat16); goes on with 'make demo-full'"
	@$(BIN)/pydeploy run fashion_mnist_resnet20_cpu --out $(OUT)/demo-full --resume

demo-openvino: setup data
	@$(BIN)/python -c "import openvino" 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check 'openvino>=2025.0'
	@echo "demo-openvino: about 6 minutes on two cores"
	@$(BIN)/pydeploy run fashion_mnist_resnet20_openvino --out $(OUT)/openvino --resume

demo-segmentation: setup data
	@echo "demo-segmentation: 10 to 15 minutes on two cores"
	@$(BIN)/pydeploy run configs/segmentation_canvas.yaml --out $(OUT)/segmentation --resume

demo-detection: setup data
	@echo "demo-detection: 10 to 15 minutes on two cores"
	@$(BIN)/pydeploy run configs/detection_canvas.yaml --out $(OUT)/detection --resume

demo-inspection: setup
	@echo "demo-inspection: about 10 minutes on two cores"
	@$(BIN)/pydeploy run configs/inspection_canvas.yaml --out $(OUT)/inspection --resume

# The trained network that the demo starts from: the one of `make demo-full`, in half precision.
weights: demo-full
	@$(BIN)/python bench/demo_weights.py $(OUT)/demo-full/01_train/model.safetensors

test: develop
	@date +%s > $(VENV)/.started
	@$(MAKE) --no-print-directory lint types unit package
	@echo "test: everything passed in $$(( $$(date +%s) - $$(cat $(VENV)/.started) )) s"

lint: develop
	@echo "== lint: ruff, clang-format"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/clang-format --dry-run --Werror $(SOURCES)

types: develop
	@echo "== types: mypy --strict, stubtest"
	@$(BIN)/mypy
	@$(BIN)/python -m mypy.stubtest pydeploy._core

unit: develop
	@echo "== tests: unit, property, architecture, CLI, end to end, benchmarks as smoke tests"
	@$(BIN)/python -m pytest --durations=10 tests bench

# The wheel and the sdist, and the wheel in an environment of its own, outside the checkout. The big dependencies
# are borrowed from $(VENV) by path, which does not activate its editable install.
package: develop
	@echo "== package: sdist, wheel, wheel in a clean environment"
	@rm -rf build/package && mkdir -p build/package
	@$(BIN)/python -m build --no-isolation --outdir build/package . > build/package/log 2>&1 || { cat build/package/log; exit 1; }
	@$(PYTHON) -m venv build/package/venv
	@build/package/venv/bin/pip install --quiet --disable-pip-version-check --no-deps build/package/*.whl
	@$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > "$$(build/package/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
	@cd build/package && venv/bin/pydeploy trace pydeploy:resnet8 --input 1x3x32x32 > trace.txt && grep -q "groups prunable" trace.txt
	@cd build/package && venv/bin/pydeploy run smoke --plan > plan.txt && venv/bin/pydeploy configs --copy copied > /dev/null && grep -q "would run" plan.txt
	@cd build/package && ! CUDA_VISIBLE_DEVICES= venv/bin/pydeploy gpu-check --set target.backend=tensorrt-rtx --out gpu > gpu.txt 2>&1 && grep -Eq "FAIL.*(no NVIDIA driver|finds no GPU)" gpu.txt
	@cd build/package && venv/bin/python -c "import pydeploy.graph, pydeploy._core as c; assert 'build/package' in pydeploy.graph.__file__ and 'build/package' in c.__file__"
	@echo "package: $$(ls build/package/*.whl build/package/*.tar.gz | xargs -n1 basename | tr '\n' ' ')"

# Four jobs of people who know the documentation only, with the wheel in environments outside of the checkout.
newcomer: package
	@echo "== newcomer: a folder of pictures, a U-Net, an ONNX file alone, a latency test"
	@$(BIN)/python tests/newcomer/run.py build/package/*.whl

# The lowest versions that pyproject.toml states, in an environment of their own (code 3: they cannot be had here).
floors: develop
	@echo "== floors: the lowest versions of the light dependencies"
	@$(BIN)/python tests/floors.py

sanitize: sanitize-memory sanitize-threads

# A process that forks while its threads allocate may hang in the child: this allocator takes no locks at a fork, glibc's does.
sanitize-memory: develop
	@echo "== sanitize: the C++ core under AddressSanitizer and UndefinedBehaviorSanitizer"
	@$(call instrumented,address,address$(comma)undefined,libasan.so,tests/core/test_core_*.py -k "not forked")

# Tests of one thread tell nothing here, and ThreadSanitizer ends processes that fork.
sanitize-threads: develop
	@echo "== sanitize: the C++ core under ThreadSanitizer"
	@$(call instrumented,thread,thread,libtsan.so,tests/core/test_core_threads.py tests/core/test_core_batch.py tests/core/test_core_faults.py -k "not forked")

# $(1): a name, $(2): sanitizers, $(3): their runtime, $(4): tests. `-S` keeps the editable install out, so that the
# instrumented module is the one that is loaded; `-s` lets a sanitizer that ends the process say why.
define instrumented
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --upgrade \
		--target build/sanitize/$(1)/site -C build-dir=build/sanitize/$(1)/cmake -C cmake.build-type=RelWithDebInfo \
		-C cmake.define.PYDEPLOY_SANITIZE=$(2) . && \
	LD_PRELOAD="$$($(CXX) -print-file-name=$(3)) $$($(CXX) -print-file-name=libstdc++.so)" PYDEPLOY_SANITIZERS=$(2) \
		ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
		TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1 \
		PYTHONPATH="build/sanitize/$(1)/site:$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')$${PYTHONPATH:+:$$PYTHONPATH}" \
		$(BIN)/python -S $(BIN)/pytest -qs -p no:cacheprovider $(4)
endef

# The TensorRT backend against the real Python bindings of eight versions, as far as these can be had; no GPU is needed.
trt-contract: develop
	@$(BIN)/python tests/backends/trt_contract.py

# Writes docs/figures/tensorrt-files.md; goes on where it was stopped. `make test` does the same for the smaller networks.
trt-files: develop
	@$(BIN)/python tests/backends/trt_files.py --work build/trt-files

# The acceptance test for whoever has an NVIDIA GPU: the whole job in fp16 and int8, and every promise checked.
gpu-check: setup
	-@$(BIN)/python -m pydeploy.data.fetch  # without Fashion-MNIST the pictures are synthetic
	@$(BIN)/python -c "import tensorrt, pycuda" 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check 'tensorrt>=8.6' 'pycuda>=2024.1' 'cuda-python>=12.4' 'nvidia-ml-py>=12' || true
	@$(BIN)/pydeploy gpu-check --out $(OUT)/gpu-check

# The same for TensorRT for RTX on a GeForce or RTX card; nothing is compiled.
gpu-check-rtx: setup
	-@$(BIN)/python -m pydeploy.data.fetch  # without Fashion-MNIST the pictures are synthetic
	@$(BIN)/python -c "import tensorrt_rtx, cuda.bindings.driver" 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check 'tensorrt-rtx>=1.4' 'cuda-python>=12.4' 'nvidia-ml-py>=12'
	@$(BIN)/pydeploy gpu-check --set target.backend=tensorrt-rtx --out $(OUT)/gpu-check-rtx

bench: develop
	@$(BIN)/python -m pytest bench --benchmark-enable --benchmark-autosave --benchmark-group-by=group --benchmark-columns=median,iqr,rounds

# The pictures and numbers of the README, from the last demo-full and demo-openvino; without one, those that are there are rendered again.
figures:
	@if [ -f $(OUT)/demo-full/report.json ]; then cd $(OUT)/demo-full && cp *.svg report.md report.json $(CURDIR)/docs/figures/demo/; fi
	@if [ -f $(OUT)/openvino/report.json ]; then cd $(OUT)/openvino && cp *.svg report.md report.json $(CURDIR)/docs/figures/openvino/; fi
	@for run in demo openvino; do $(BIN)/pydeploy report docs/figures/$$run && rm docs/figures/$$run/report.html; done

# Strict: a link that leads nowhere, or a page in no menu, ends it.
docs: develop
	@$(BIN)/python -c "import material, mkdocstrings" 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check 'mkdocs-material>=9.5' 'mkdocstrings[python]>=0.26'
	@$(BIN)/python -m mkdocs build --strict --quiet
	@echo "docs: build/site/index.html"

format: develop
	@$(BIN)/ruff format --quiet . && $(BIN)/ruff check --fix --quiet . && $(BIN)/clang-format -i $(SOURCES)

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
