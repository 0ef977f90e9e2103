# Two commands on a fresh machine: `make quickstart` and `make test`.
VENV ?= .venv
PYTHON ?= python3
PY := $(VENV)/bin/python
OLDEST := .venv-oldest
XLA := .venv-xla
DEEPSPEED := .venv-deepspeed
DOCS := .venv-docs

.PHONY: help quickstart check test test-slow test-oldest test-xla test-deepspeed tables configs cards pictures docs docs-check dist benchmarks clean

help:
	@echo "make quickstart   install, train a small language model for about two minutes, show the results"
	@echo "make test         the tests (about ten minutes on two cores)"
	@echo "make check        ruff (lint and format), mypy, and the rules of the house (tests/test_house.py)"
	@echo "make test-slow    the longer checks"
	@echo "make test-oldest  the attachment contract on the oldest supported Lightning and torch"
	@echo "make test-xla     every recipe on XLA's CPU device, in an environment of its own (torch 2.9)"
	@echo "make test-deepspeed  recipes under DeepSpeed's ZeRO on one CPU process, in an environment of its own"
	@echo "make tables       write the tables of docs/ from what the tests see"
	@echo "make configs      write lit_opt/configs anew from the recipes"
	@echo "make cards        write docs/cards anew from the registry, the recipes and what was measured"
	@echo "make pictures     draw the pictures of README and site anew"
	@echo "make docs         the documentation site in site/, in an environment of its own"
	@echo "make docs-check   walk the site in Chromium: links, pictures, width, requests"
	@echo "make dist         wheel and sdist in dist/"
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
	OMP_NUM_THREADS=1 $(PY) -m pytest -q tests/test_house.py

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

# torch_xla pins the torch it was built for.
$(XLA)/.installed: pyproject.toml
	$(PYTHON) -m venv $(XLA)
	$(XLA)/bin/python -m pip install --quiet "torch==2.9.*" "torch_xla==2.9.*" "lightning==2.6.*" "pytest>=8" --editable .
	@touch $@

test-xla: $(XLA)/.installed
	OMP_NUM_THREADS=1 $(XLA)/bin/python -m pytest tests/contract/on_xla.py -k "not bf16" $(TABLES)
	OMP_NUM_THREADS=1 $(XLA)/bin/python -m pytest tests/contract/on_xla.py -k bf16 $(TABLES)

# DeepSpeed compiles an operation of its own when it starts: a C++ compiler is needed.
$(DEEPSPEED)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DEEPSPEED)
	$(DEEPSPEED)/bin/python -m pip install --quiet --constraint constraints.txt "pytest>=8" setuptools ninja --editable .
	DS_ACCELERATOR=cpu $(DEEPSPEED)/bin/python -m pip install --quiet --no-build-isolation deepspeed
	@touch $@

test-deepspeed: $(DEEPSPEED)/.installed
	PATH="$(CURDIR)/$(DEEPSPEED)/bin:$$PATH" OMP_NUM_THREADS=1 $(DEEPSPEED)/bin/python -m pytest tests/contract/on_deepspeed.py $(TABLES)

# The environments for XLA and DeepSpeed note theirs with `make test-xla TABLES=--write-tables`.
tables: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(PY) -m pytest tests/contract/test_every_optimizer.py --write-tables
	OMP_NUM_THREADS=1 $(PY) -m pytest tests/contract/test_strategies.py -m slow --write-tables

configs: $(VENV)/.workloads
	$(PY) -m lit_opt.commands.generate_configs

cards: $(VENV)/.workloads
	$(PY) -m lit_opt.commands.generate_cards

pictures: $(VENV)/.workloads
	PYTHONPATH=. $(PY) docs/make_pictures.py

# mkdocstrings reads the source without importing it: neither torch nor lightning is needed here.
$(DOCS)/.installed: pyproject.toml
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet "mkdocs>=1.6,<2" "mkdocs-material>=9.5" "mkdocstrings[python]>=0.27" "ruff>=0.9"
	@touch $@

docs: $(DOCS)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

docs-check: docs
	$(DOCS)/bin/python -m pip install --quiet selenium
	$(DOCS)/bin/python docs/check_site.py site

dist: $(VENV)/.dev
	$(PY) -m build

benchmarks: $(VENV)/.workloads
	$(PY) -m benchmarks.recipe_vs_default
	$(PY) -m benchmarks.matrix_language_model
	$(PY) -m benchmarks.memory_estimate
	$(PY) -m benchmarks.plan_time

clean:
	rm -rf $(VENV) $(OLDEST) $(XLA) $(DEEPSPEED) $(DOCS) site build dist *.egg-info
