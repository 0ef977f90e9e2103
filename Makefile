# Two commands on a fresh machine: `make quickstart` and `make test`.
VENV ?= .venv
PYTHON ?= python3
PY := $(VENV)/bin/python
OLDEST := .venv-oldest

.PHONY: help quickstart check test test-slow test-oldest tables configs benchmarks clean

help:
	@echo "make quickstart   install, train a small language model for about two minutes, show the results"
	@echo "make test         the tests (about ten minutes on two cores)"
	@echo "make check        ruff (lint and format) and mypy"
	@echo "make test-slow    the longer checks"
	@echo "make test-oldest  the attachment contract on the oldest supported Lightning and torch"
	@echo "make tables       write the tables of docs/ from what the tests see"
	@echo "make configs      write lit_opt/configs anew from the recipes"
	@echo "make benchmarks   figures in benchmarks/results; each script there says its own command"

$(VENV)/.workloads: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[workloads]"
	@touch $@

$(VENV)/.dev: $(VENV)/.workloads
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

quickstart: $(VENV)/.workloads
	$(VENV)/bin/lit-opt fit --config llm

check: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy lit_opt tests

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: $(VENV)/.dev
	OMP_NUM_THREADS=2 $(PY) -m pytest -m slow

$(OLDEST)/.installed: pyproject.toml
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet "torch==2.9.*" "torchvision==0.24.*" "lightning==2.4.*" "pytest>=8" --editable .
	@touch $@

test-oldest: $(OLDEST)/.installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest tests/contract/test_attachment.py

tables: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(PY) -m pytest tests/contract/test_every_optimizer.py tests/contract/test_strategies.py --write-tables

configs: $(VENV)/.workloads
	$(PY) -m lit_opt.commands.generate_configs

benchmarks: $(VENV)/.workloads
	$(PY) -m benchmarks.recipe_vs_default
	$(PY) -m benchmarks.matrix_language_model
	$(PY) -m benchmarks.memory_estimate
	$(PY) -m benchmarks.plan_time

clean:
	rm -rf $(VENV) $(OLDEST) build dist *.egg-info
