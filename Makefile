# Every step from a bare checkout; `make` lists the targets. Needs Python 3.11 or newer.
PYTHON ?= python3
# Which torch to install, such as TORCH=torch==2.13.0+cu130 where pip's index offers several builds.
TORCH  ?= torch
# Ranks for train and bench: all GPUs, or 2 on a machine without.
NPROC  ?=
# The authors' movielens_{train,valid,test}.txt, for `make results`.
ML1M   ?= downloads/movielens-1m
AMAZON ?= downloads/amazon
# make test ARGS="-k launch" runs some tests only.
ARGS   ?=

VENV   := .venv
EUPMIM := $(VENV)/bin/eupmim-dist
LAUNCH := $(EUPMIM) launch $(if $(NPROC),--nproc $(NPROC)) --
COMPARE := OMP_NUM_THREADS=1 $(EUPMIM) compare
BASELINES := popularity,ease,cooccurrence,association
PYTEST := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(VENV)/bin/python -m pytest
STAMP  := $(VENV)/installed
DATA   := data/example
RUN    := runs/example

# Where it is set, each of the many processes that tests start would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup train test hosts-test launch-local launch-torchrun launch-zero2 launch-2node-local crash-test \
  fuzz check bench gpu-check clean \
  results results-movielens results-ablation results-authors results-amazon results-elmrec

help:  ## This list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/' | expand -t 26

setup: $(STAMP)  ## Make .venv and install the project and its tools into it

$(STAMP): pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt "$(TORCH)" -e ".[dev]"
	@touch $@

train: $(STAMP) $(DATA)  ## Train on example data, compare with baselines, recommend
	$(LAUNCH) train --config configs/example.yaml --run-dir $(RUN) --baseline $(BASELINES)
	rm -rf $(RUN)/model && $(EUPMIM) consolidate $(RUN) --out $(RUN)/model
	$(EUPMIM) recommend $(RUN)/model --user 1 --user 2 --user 3 --top-n 5

$(DATA): | $(STAMP)
	$(EUPMIM) synth --users 4000 --items 1000 --out $@

# Unit tests run side by side, as many as there are CPUs; then those that start ranks of their own, two files at a time.
test: $(STAMP)  ## Run all tests
ifdef ARGS
	$(PYTEST) $(ARGS)
else
	status=0; $(PYTEST) tests/unit -n logical --maxprocesses 4 --dist worksteal || status=1; \
	  $(PYTEST) tests/distributed tests/e2e -n 2 --dist loadfile || status=1; exit $$status
endif

hosts-test: $(STAMP)  ## Launch on several hosts made of network namespaces (root, Linux), with faults between them; minutes
	$(PYTEST) tests/hosts tests/distributed/test_hosts.py $(ARGS)

# The ways to launch of docs/launching.md that one machine can show, on example data.
EXAMPLE := train --config configs/example.yaml --baseline none --run-dir runs/launch

launch-local: $(STAMP) $(DATA)  ## Train by launch/local.sh: all GPUs, or 2 CPU ranks
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" launch/local.sh $(EXAMPLE)-local

launch-torchrun: $(STAMP) $(DATA)  ## The same by launch/torchrun.sh
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" launch/torchrun.sh $(EXAMPLE)-torchrun

launch-zero2: $(STAMP) $(DATA)  ## The same under DeepSpeed's ZeRO-2
	$(EUPMIM) launch --config-file configs/accelerate/zero2.yaml -- $(EXAMPLE)-zero2

launch-2node-local: $(STAMP) $(DATA)  ## Two nodes of one CPU rank each, both on this machine, by launch/accelerate_nodes.sh
	export PATH="$(CURDIR)/$(VENV)/bin:$$PATH" CUDA_VISIBLE_DEVICES= RANKS=1 NODES=2 ENDPOINT=127.0.0.1:29511; \
	  NODE_RANK=1 launch/accelerate_nodes.sh $(EXAMPLE)-2node & \
	  NODE_RANK=0 launch/accelerate_nodes.sh $(EXAMPLE)-2node && wait $$!

crash-test: $(STAMP)  ## Kill two trainings 20 times each and compare with one that was left alone; some 10 minutes
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m tests.crash $(ARGS)

fuzz: $(STAMP)  ## Run 20,000 changed sources, stores, settings, checkpoints and paths; each must be answered well; half an hour
	$(VENV)/bin/python -m tests.fuzz $(ARGS)

check: $(STAMP)  ## Lint, formatting, types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(STAMP) $(DATA)  ## Measure training, evaluation and sharded tables on this machine
	$(EUPMIM) bench step --data $(DATA)
	$(LAUNCH) bench tables --systems ours,ddp

gpu-check: $(STAMP)  ## Check and measure everything on this machine's GPU, in 9 minutes; in small where there is none
	$(EUPMIM) bench gpu --json gpu-check.json

results: results-movielens results-ablation results-authors results-amazon results-elmrec  ## Repeat docs/results.md, many hours; the authors' MovieLens-1M files in ML1M=DIR, P5's in AMAZON=DIR

# One thread each: the last bits of results depend on their number.
results-movielens: data/movielens-1m
	$(COMPARE) configs/eupmim_movielens_best.yaml $(filter-out %/lightgcn.yaml %/youtube_dnn.yaml,$(wildcard configs/models/*.yaml)) --set data.dir=data/movielens-1m \
	  --seeds 1,2,3 --baseline $(BASELINES) --out runs/results/movielens

results-ablation: data/movielens-1m
	$(COMPARE) configs/eupmim_movielens_best.yaml --set data.dir=data/movielens-1m --set train.max_steps=1000 --set evaluation.every=250 --split valid --seeds 1,2,3 \
	  --variant "next item alone: objective.discount=0" \
	  --variant "sampled softmax: objective=null objective.name=sampled_softmax" \
	  --variant "history 50: task.history_length=50" \
	  --variant "users' ids always seen: model.user_dropout=0" \
	  --variant "no graph: model.graph=false" \
	  --variant "no profile: model.profile=false model.profile_attention=none model.user_dropout=0" \
	  --variant "no profile attention: model.profile_attention=none" \
	  --variant "both ways, one place: model.extractor=transformer task.name=next_item task.history_length=50 train.global_batch_size=256 objective.discount=0" \
	  --variant "four interests: model.num_interests=4" --out runs/results/ablation

results-amazon: $(STAMP)
	for name in beauty toys; do \
	  { [ -d data/$$name ] || $(EUPMIM) prepare $(AMAZON)/$$name --format elmrec --out data/$$name; } && \
	  $(COMPARE) $(wildcard configs/amazon/*.yaml) --set data.dir=data/$$name --seeds 1 --baseline $(BASELINES) --out runs/results/$$name || exit 1; \
	done

# Rows by LightGCN; direct prompts, at last of 100 items (an hour or two), with ids as the files have them too, over the leaky graph, and without rows (POD); sequential ones.
ROWS := OMP_NUM_THREADS=1 $(EUPMIM) train --config configs/models/lightgcn.yaml --set model.dim=16 --set train.max_steps=800 --baseline none
ELMREC := OMP_NUM_THREADS=1 $(EUPMIM) train --config configs/elmrec_amazon.yaml --baseline none
FROM_ROWS := --set train.init_only_rows=true --set train.init_from=$$out-rows
HUNDRED := --set task.num_negatives=99 --set train.global_batch_size=64 --set train.learning_rate=0.0015 --set train.max_steps=1600 \
  --set evaluation.every=400 --set checkpoint.every=100
POD := --set model.words=places --set model.alpha=1 --set model.position_std=1 --set model.row_dim=null
SEQUENTIAL := --set task.mix=[sequential] --set task.history_length=10 --set model.rows_in_sequential=true --set train.max_steps=2500 \
  --set evaluation.every=1250 --set evaluation.users=2000 --set evaluation.protocol=elmrec_sequential
# $(1): name of the run, $(2): settings of both trainings, $(3): what the first one starts from.
direct = $(ELMREC) $(2) $(3) --set task.num_negatives=4 --run-dir $$out-$(1)-of5 && $(ELMREC) $(2) --set train.init_from=$$out-$(1)-of5 --run-dir $$out-$(1)

results-elmrec: $(STAMP)
	for name in beauty toys; do \
	  data="--set data.dir=data/$$name"; kept="$$data-kept"; out=runs/results/elmrec-$$name; \
	  { [ -d data/$$name ] || $(EUPMIM) prepare $(AMAZON)/$$name --format elmrec --out data/$$name; } && \
	  { [ -d data/$$name-kept ] || $(EUPMIM) prepare $(AMAZON)/$$name --format elmrec --keep-ids --out data/$$name-kept; } && \
	  $(ROWS) $$data --run-dir $$out-rows && $(ROWS) $$data --set model.graph=published --run-dir $$out-leaky-rows && \
	  $(call direct,direct,$$data,$(FROM_ROWS)) && $(ELMREC) $$data $(HUNDRED) --set train.init_from=$$out-direct --run-dir $$out-direct-of100 && \
	  $(call direct,kept,$$kept,$(FROM_ROWS)) && $(call direct,pod,$$data $(POD),) && \
	  $(call direct,leaky,$$data --set model.graph=published,$(FROM_ROWS:-rows=-leaky-rows)) && \
	  $(ELMREC) $$data $(SEQUENTIAL) $(FROM_ROWS) --run-dir $$out-sequential && \
	  $(ELMREC) $$kept $(SEQUENTIAL) $(FROM_ROWS) --run-dir $$out-sequential-kept || exit 1; \
	done

results-authors: data/movielens-1m
	for n in 1 2; do \
	  $(EUPMIM) launch --nproc $$n -- train --config configs/eupmim_movielens.yaml --run-dir runs/movielens-$${n}rank && \
	  $(EUPMIM) evaluate runs/movielens-$${n}rank --protocol strict,comirec,seed --top-n 10 \
	    --baseline $(BASELINES) --json runs/movielens-$${n}rank/results.json || exit 1; \
	done

data/movielens-1m: | $(STAMP)
	$(EUPMIM) prepare $(ML1M) --format eupmim --out $@

clean:  ## Remove what training and tools wrote; keeps .venv
	rm -rf $(DATA) $(RUN) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
