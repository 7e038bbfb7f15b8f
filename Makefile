# make demo: convert real weights and classify photos with them.  make test: lint, types and tests.
# Both set everything up in .venv first.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check bench clean
.DELETE_ON_ERROR:

demo: $(INSTALLED)
	$(BIN)/python -m examples.demo

test: check
	$(BIN)/python -m pytest

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks

$(INSTALLED): pyproject.toml requirements-samples.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "convswap needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch torchvision timm
	$(BIN)/pip install --quiet --editable ".[test]"
	$(BIN)/pip install --quiet --no-deps --requirement requirements-samples.txt
	touch $@

clean:
	rm -rf .venv build dist demo-out *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
