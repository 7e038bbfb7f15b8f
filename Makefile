# make demo: convert real weights and classify photos with them.  make test: lint, types and tests.
# Both set everything up in .venv first.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
# As many processes as there are cores, but no more than 8, as one may take 3 GB.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal
# Left out where kernels are off: these set CONVSWAP_KERNELS themselves, or have nothing to do with it, as has whatever
# is exported.
SAME := $(addprefix --deselect tests/layers/,ops/test_build.py ops/test_load.py ops/test_agreement.py \
	test_dcls_sharded.py test_dcls_onnx.py test_dcls_training.py test_guided_onnx.py test_patch_dynamic_state.py)

export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check kernels bench cuda-all clean
.DELETE_ON_ERROR:

demo: $(INSTALLED)
	$(BIN)/python -m examples.demo

# What has kernels is tested twice: on the plain PyTorch forms, and with the compiled kernels.
test: $(INSTALLED)
	$(MAKE) --no-print-directory $(if $(findstring jobserver,$(MAKEFLAGS)),,--jobs 2) check kernels
	CONVSWAP_KERNELS=off $(PYTEST) tests/layers/ops tests/layers/test_dcls*.py tests/layers/test_large*.py \
		tests/layers/test_guided*.py tests/layers/test_dynamic_conv.py tests/layers/test_od_conv.py \
		tests/layers/test_hybrid*.py tests/layers/test_patch_dynamic*.py \
		tests/layers/test_extrapolation.py tests/layers/test_padding_free.py \
		tests/layers/test_padding_free_conv.py $(SAME)
	$(PYTEST)

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Compiled while mypy has the other core. Where that fails, the tests that need kernels say so.
kernels: $(INSTALLED)
	-$(BIN)/convswap build --backend cpu

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks

# The CUDA kernels for every architecture that is supported; needs nvcc and no GPU.
cuda-all: $(INSTALLED)
	$(BIN)/convswap build --backend cuda --cuda-archs 80,86,90,100,120

$(INSTALLED): pyproject.toml requirements-samples.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "convswap needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch torchvision timm
	$(BIN)/pip install --quiet --editable ".[test]"
	$(BIN)/pip install --quiet --no-deps --requirement requirements-samples.txt
	touch $@

clean:
	rm -rf .venv build dist demo-out boundaries-out *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
