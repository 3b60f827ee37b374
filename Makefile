# On a fresh machine with Python 3.11, 3.12 or 3.13: `make demo` shows the whole way, `make test` proves it.
# `make test PYTHON=python3.13` takes another Python than the first one found, in an environment of its own.
FOUND := $(shell for one in python3.11 python3.12 python3.13; do $$one -c '' 2>/dev/null && echo $$one && break; done)
PYTHON ?= $(or $(FOUND),python3.11)
VENV ?= .venv$(patsubst %,-%,$(notdir $(filter-out $(FOUND),$(PYTHON))))
BASE ?= .venv-base-$(notdir $(PYTHON))
BIN := $(VENV)/bin
# One more than there are cores: many tests wait for processes that they have started.
JOBS ?= $(shell expr 1 + $$(getconf _NPROCESSORS_ONLN))
PACKAGES := converters edge coordinator tunefleet.py
OLDEST_LLAMA := $(shell sed -n 's/.*"llama-cpp-python>=\([0-9.]*\),.*/\1/p' pyproject.toml)

# A person sees pip's progress, a log only what went wrong.
PIP := -m pip install $(if $(CI),--quiet)
INSTALL := $(PIP) -c constraints.txt
PYTEST := -m pytest -n $(JOBS) --dist worksteal

.PHONY: demo test base oldest check bench clean

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo '[1/3] An environment in $(VENV), of $(PYTHON)'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python $(INSTALL) --quiet --upgrade pip
	@echo '[2/3] PyTorch, MLX and what else the demo and the tests need: 1 to 3 minutes'
	@$(BIN)/python $(INSTALL) --editable '.[torch,mlx,broker,data,demo,bench,dev]'
	@echo '[3/3] llama.cpp, compiled here the first time: 4 to 6 minutes on two cores'
	@CMAKE_ARGS=-DLLAVA_BUILD=OFF $(BIN)/python $(INSTALL) llama-cpp-python gguf \
	  || printf '%s\n' 'llama.cpp cannot be compiled here (a C++ compiler is needed):' \
	    'its devices and tests are skipped'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/tunefleet demo

test: $(VENV)/.installed
	$(BIN)/python $(PYTEST)

# The base install, which has no extra but what the tests are made with, and those tests that need no other.
base: $(BASE)/.installed
	$(BASE)/bin/python $(PYTEST) -m 'not torch and not mlx and not llama'

$(BASE)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(BASE)
	$(BASE)/bin/python $(INSTALL) --quiet --upgrade pip
	$(BASE)/bin/python $(INSTALL) --editable '.[dev]'
	touch $@

# The lower end of the range of llama-cpp-python, beside the upper one: `make test` tries both where it is there.
oldest: $(VENV)/llama-$(OLDEST_LLAMA)

$(VENV)/llama-$(OLDEST_LLAMA): | $(VENV)/.installed
	@echo 'llama.cpp of llama-cpp-python $(OLDEST_LLAMA), compiled: 4 to 6 minutes on two cores'
	@CMAKE_ARGS=-DLLAVA_BUILD=OFF $(BIN)/python $(PIP) --no-deps --target $@ llama-cpp-python==$(OLDEST_LLAMA)

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
	rm -rf .venv* build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
