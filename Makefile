# The first target that needs it sets up .venv; afterwards that is instant.

# python3.11 is what constraints.txt was frozen with; any newer python3 is the fallback.
PYTHON ?= $(shell python3.11 --version >/dev/null 2>&1 && echo python3.11 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCHMARKS := engine deletion_budget exactness damage leakage forgetting serving \
    generation export_equality language banking lmeraser utility \
    first_hour
TESTERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-heavy lint types check bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## create .venv and install s3t with everything for development

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@echo "Setting up $(VENV) with $(PYTHON): minutes the first time, never again until the pins change"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "s3t needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP) ## train on digits, delete people, watch it keep serving
	$(BIN)/python -m benchmarks.demo

test: $(STAMP) ## run the tests, but for the heavy ones, on TESTERS processes (ARGS go to pytest)
	$(BIN)/python -m pytest -n $(TESTERS) --dist worksteal -m 'not heavy' $(ARGS)

test-heavy: $(STAMP) ## run those that start many processes or train real models, and the checks of the benchmarks
	$(BIN)/python -m pytest -n $(TESTERS) --dist worksteal -m heavy $(ARGS)
	$(BIN)/python -m pytest -n $(TESTERS) --dist worksteal benchmarks/checks

lint: $(STAMP) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## mypy, strict
	$(BIN)/mypy

check: lint types test test-heavy ## everything that CI checks

bench: $(STAMP) ## run the committed benchmarks again
	@set -e; for name in $(BENCHMARKS); do \
	    echo "$(BIN)/python -m benchmarks.$$name"; $(BIN)/python -m benchmarks.$$name; \
	done

clean: ## remove .venv, build output and caches; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find s3t tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
