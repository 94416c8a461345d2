# Every target sets up what it needs; `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TEST_STAMP := $(VENV)/.installed-test
SERVE_CONFIG ?= configs/local.yaml
WORKERS := -n auto --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "flux-serve needs Python 3.11 or newer; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# torch first: where a CPU build is offered, nothing else may pull the CUDA one
	$(BIN)/python -m pip install --quiet 'torch==2.13.*'
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(TEST_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

setup: $(STAMP) ## Create .venv and install

run: setup ## Install and serve configs/local.yaml on 127.0.0.1:8000
	@# a cluster of its own, even where another Ray runs
	RAY_ADDRESS=$${RAY_ADDRESS:-local} $(BIN)/flux-serve serve $(SERVE_CONFIG)

test: $(TEST_STAMP) ## Run every test that needs no GPU
	@# a worker for each core that is free; what a worker runs: tests/groups.py
	$(BIN)/python -m pytest -m 'not gpu' $(WORKERS)

test-fast: $(TEST_STAMP) ## Run the tests that need no server: minutes
	$(BIN)/python -m pytest -m 'not gpu and not serve' $(WORKERS)

test-gpu: $(TEST_STAMP) ## Run the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

check: $(TEST_STAMP) ## Lint, types, layers, tidiness
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_tidy.py

fix: $(TEST_STAMP) ## Format and apply safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(TEST_STAMP) ## Run the quick benchmarks
	$(BIN)/python -m benchmarks.codec --quick
	$(BIN)/python -m benchmarks.engine --device cpu --quick
	$(BIN)/python -m benchmarks.ledger --quick

loadtest: $(TEST_STAMP) ## Serve simulated GPUs, ramp up and down, write a report
	$(BIN)/python -m benchmarks.loadtest --ramp

clean: ## Remove caches and build output; keeps .venv and data
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build *.egg-info

.PHONY: help setup run test test-fast test-gpu check fix bench loadtest clean
