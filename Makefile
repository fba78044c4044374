# Every step from a bare checkout; `make` lists the targets. Needs Python 3.11 or newer.
PYTHON ?= python3
# Which torch to install, such as TORCH=torch==2.13.0+cu130 where pip's index offers several builds.
TORCH  ?= torch
# Ranks for train and bench: all GPUs, or 2 on a machine without.
NPROC  ?=
# More arguments for pytest: make test ARGS="-k launch".
ARGS   ?=

VENV   := .venv
EUPMIM := $(VENV)/bin/eupmim-dist
LAUNCH := $(EUPMIM) launch $(if $(NPROC),--nproc $(NPROC)) --
STAMP  := $(VENV)/installed
DATA   := data/example
RUN    := runs/example

.DEFAULT_GOAL := help
.PHONY: help setup train test check bench results clean

help:  ## This list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

setup: $(STAMP)  ## Make .venv and install the project and its tools into it

$(STAMP): pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt "$(TORCH)" -e ".[dev]"
	@touch $@

train: $(STAMP) $(DATA)  ## Train on example data, compare with baselines, recommend
	$(LAUNCH) train --config configs/example.yaml --run-dir $(RUN)
	$(EUPMIM) evaluate $(RUN) --baseline popularity,ease --json $(RUN)/comparison.json
	$(EUPMIM) consolidate $(RUN) --out $(RUN)/model
	$(EUPMIM) recommend $(RUN)/model --data $(DATA) --user 1 --user 2 --user 3 --top-n 5
	@echo "Curves: $(VENV)/bin/tensorboard --logdir $(RUN)/tensorboard"

$(DATA): | $(STAMP)
	$(EUPMIM) synth --users 4000 --items 1000 --out $@

test: $(STAMP)  ## Run all tests
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(VENV)/bin/python -m pytest $(ARGS)

check: $(STAMP)  ## Lint, formatting, types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(STAMP) $(DATA)  ## Measure samples/s of the training step
	$(LAUNCH) bench step --data $(DATA)

results: $(STAMP)  ## Reproduce the numbers in the README
	$(VENV)/bin/python -m eupmim_dist bench results

clean:  ## Remove what training and tools wrote; keeps .venv
	rm -rf $(DATA) $(RUN) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
