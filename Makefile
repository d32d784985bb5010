# Two commands on a fresh machine: `make demo` and `make test`. They need python3, make and a package registry.

# The newest of these that runs (a version manager's stand-in may exist and not run). PYTHON=... overrides.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
  $$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
RUN := $(VENV)/bin/python
WORKDIR ?= runs/demo

.PHONY: help demo test fast parity soak mutants lint types format clean

help:
	@echo "make demo    train on the embedded digits, restore, evaluate, export (2 to 3 minutes with the install)"
	@echo "make test    all tests, and a fixed share of the proof"
	@echo "make fast    the tests that take seconds"
	@echo "make parity  the whole proof: every network against PyTorch (13 minutes on 2 cores)"
	@echo "make soak    runs that are stopped at random moments, by every signal, on every layout of devices (an hour)"
	@echo "make mutants the code broken on purpose, mistake by mistake: those that no test sees (MINUTES)"
	@echo "make lint | types | format | clean"

demo: $(VENV)/train.stamp
	rm -rf $(WORKDIR)
	$(RUN) train.py --config=configs/digits_resnet20.py --workdir=$(WORKDIR)
	@echo "--- the checkpoint, restored and evaluated again:"
	$(RUN) train.py --config=configs/digits_resnet20.py --workdir=$(WORKDIR) --mode=eval
	@echo "--- the weights, exported under PyTorch's names and read back:"
	$(VENV)/bin/resnet-jax convert $(WORKDIR) --out=$(WORKDIR)/digits_resnet20.safetensors

test: $(VENV)/dev.stamp
	$(RUN) -m pytest -n 2 --dist worksteal -m "(share or not parity) and not soak"

parity: $(VENV)/dev.stamp
	$(RUN) -m pytest -n 2 --dist worksteal -m parity

fast: $(VENV)/fast.stamp
	$(RUN) -m pytest -n 2 --dist worksteal -m "not slow and not parity and not soak"

soak: $(VENV)/dev.stamp
	$(RUN) -m pytest -n 2 --dist worksteal -m soak
	$(RUN) tools/kill_runs.py --runs=50
	$(RUN) tools/kill_runs.py --how=term --runs=10
	$(RUN) tools/kill_runs.py --how=full --runs=5
	$(RUN) tools/kill_runs.py --how=devices --runs=6

mutants: $(VENV)/dev.stamp
	$(RUN) tools/mutants.py

lint: $(VENV)/fast.stamp
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(VENV)/fast.stamp
	$(RUN) -m mypy

format: $(VENV)/fast.stamp
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf .venv .venv-* .cache .pytest_cache .ruff_cache .mypy_cache runs/demo

# One environment for each Python; `demo` needs neither torch nor the tools of development. Each step installs all that
# the ones before it do, in one go. Modules are compiled when they are first imported: most of torch never is.
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check --no-compile --editable

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install one, or give PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/train.stamp: pyproject.toml | $(VENV)/bin/python
	$(INSTALL) ".[train]"
	@touch $@

$(VENV)/fast.stamp: pyproject.toml | $(VENV)/bin/python
	$(INSTALL) ".[train,dev]"
	@touch $(VENV)/train.stamp $@

$(VENV)/dev.stamp: pyproject.toml | $(VENV)/bin/python
	$(INSTALL) ".[train,torch,gcs,tpu,dev]"
	@touch $(VENV)/train.stamp $(VENV)/fast.stamp $@
