# Every target sets up what it needs in .venv; a second call reinstalls nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
STAMPED := pyproject.toml constraints.txt

.PHONY: demo test test-slow lint format docs notebooks bench clean help
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "pyro_ext needs Python >= 3.10, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Set PYTHON=python3.11, say."; exit 1; }
	@echo "== [1/2] making $(VENV) and installing torch (a few minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	@touch $@

# .venv/.installed-EXTRA: the package, editable, with one extra.
$(VENV)/.installed-%: $(VENV)/.torch $(STAMPED)
	@echo "== [2/2] installing pyro_ext[$*]"
	$(PIP) --editable '.[$*]'
	@touch $@

demo: $(VENV)/.installed-demo  ## train a VAE with an energy-inspired prior on real digits and judge it (3 min)
	$(BIN)/python -m pyro_ext.demo $(ARGS)

test: $(VENV)/.installed-dev  ## the default tests (5 min)
	$(BIN)/python -m pytest $(ARGS)

test-slow: $(VENV)/.installed-dev  ## the slow tests too
	$(BIN)/python -m pytest -m "not gpu and not benchmark" $(ARGS)

lint: $(VENV)/.installed-dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs  ## build docs/_build/html, warnings are errors
	$(BIN)/python tests/benchmarks/render.py
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

notebooks: $(VENV)/.installed-dev  ## execute every notebook in place
	TQDM_DISABLE=1 $(BIN)/python -m pytest --nbmake --overwrite --nbmake-timeout=1800 -p no:cacheprovider notebooks $(ARGS)
	@echo "open the notebooks in notebooks/"

bench: $(VENV)/.installed-bench  ## measure: speed beside peers, then the papers' figures (BUDGET=small|paper)
	$(BIN)/python tests/benchmarks/run.py --budget $(or $(BUDGET),small) $(ARGS)
	$(BIN)/python tests/benchmarks/render.py
	@echo "open docs/explanation/results.md"

clean:  ## remove the environment and everything built
	rm -rf $(VENV) build dist docs/_build demo .pytest_cache .mypy_cache .ruff_cache
