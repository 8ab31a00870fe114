# `make demo` and `make test` work from a bare clone: they make .venv and install into it what they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2

# Without a card, Linux gets the CPU build of PyTorch (200 MB instead of 3 GB of CUDA); if that index can't be reached,
# pip goes on with the default one. `make test TORCH_INDEX=` never looks there.
ifeq ($(shell uname -s)-$(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo gpu),Linux-)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
endif
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
INDEX_OPTION := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX) --timeout 20 --retries 0)

# Small tensors on few cores: more threads than cores only wait for each other.
export OMP_NUM_THREADS ?= 1

.PHONY: help demo notebook test lint clean

help:
	@echo 'make demo   train LIA on the demo set and show what it does (about 15 minutes on 2 cores)'
	@echo 'make notebook  run docs/editing.ipynb on what the demo leaves, and keep what it shows'
	@echo 'make test   install, lint, type check and run the tests'
	@echo 'make lint   ruff and mypy alone'
	@echo 'make clean  remove .venv, caches and the demo run'

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo '$(PYTHON) is older than Python 3.10: make test PYTHON=python3.11 names another one' >&2; exit 2; }
	@echo 'Making $(VENV) …'
	@$(PYTHON) -m venv $(VENV)

# What the demo needs; what the tests need on top of it.
$(VENV)/installed: setup.cfg pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo 'Installing PyTorch and the project into $(VENV) …'
	@$(PIP) install -c constraints.txt $(INDEX_OPTION) --no-deps torch
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@echo 'Installing the tools for the tests …'
	@$(PIP) install -c constraints.txt -e '.[dev,tensorboard]'
	@touch $@

demo: $(VENV)/installed
	@$(BIN)/python demo/demo.py

# LIA_NETWORK=net.pkl, LIA_IMAGES=… name others: see the first cell. For the tools' sake (scikit-learn) that tests need, too.
notebook: $(VENV)/installed-dev
	@$(BIN)/python docs/run_notebook.py docs/editing.ipynb

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n $(JOBS)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo-run
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
