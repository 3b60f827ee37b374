# On a fresh machine with Python 3.11: `make demo` shows the whole way, `make test` proves it.
VENV ?= .venv
PYTHON ?= python3.11
BIN := $(VENV)/bin
PACKAGES := converters edge coordinator tunefleet.py
OLDEST_LLAMA := $(shell sed -n 's/.*"llama-cpp-python>=\([0-9.]*\),.*/\1/p' pyproject.toml)

.PHONY: demo test oldest check bench clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt --editable '.[torch,mlx,broker,data,demo,bench,dev]'
	CMAKE_ARGS=-DLLAVA_BUILD=OFF $(BIN)/python -m pip install --quiet -c constraints.txt --editable '.[llama]' \
	  || echo 'llama.cpp cannot be compiled here (a C++ compiler is needed): its devices and tests are skipped'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/tunefleet demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest

# The lower end of the range of llama-cpp-python, beside the upper one: `make test` tries both where it is there.
oldest: $(VENV)/llama-$(OLDEST_LLAMA)

$(VENV)/llama-$(OLDEST_LLAMA): | $(VENV)/.installed
	CMAKE_ARGS=-DLLAVA_BUILD=OFF $(BIN)/python -m pip install --quiet --no-deps --target $@ \
	  llama-cpp-python==$(OLDEST_LLAMA)

check: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(PACKAGES)
	$(BIN)/lint-imports

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks.speed.upload
	$(BIN)/python -m benchmarks.speed.merge
	$(BIN)/python -m benchmarks.speed.training torch
	$(BIN)/python -m benchmarks.speed.training mlx
	$(BIN)/python -m benchmarks.speed.backends
	$(BIN)/python -m benchmarks.speed.backends --flat 1000
	$(BIN)/python -m benchmarks.speed.alignment
	$(BIN)/python -m benchmarks.strategies.convergence --quick

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
