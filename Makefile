# Every target makes the environment first if it is not there. Variables: CONFIG=, RUN=, VIDEO=, ARGS= (more arguments);
# of bench: OUT= (a folder), CLIPS= (how many it goes up to), ARGS= (more arguments of scripts/bench/extraction.py).
PYTHON ?= python3
CONFIG ?= configs/demo.yaml
RUN ?= $(basename $(notdir $(CONFIG)))
DEMO_GROUPS ?= 24
DEMO_CLIPS ?= 2
CLIPS ?= 1000
OUT ?= data/bench
BIN := .venv/bin
RUNS = $(or $(shell sed -n 's/^runs: *//p' "$(CONFIG)" 2>/dev/null),data/runs)
BUNDLE = $(if $(findstring /,$(RUN)),$(RUN),$(RUNS)/$(RUN))

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-data extract train evaluate predict test lint bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.done ## Make the environment .venv from the locked versions
# An environment works only where it was made.
ifneq ($(shell cat .venv/.done 2>/dev/null),$(CURDIR))
.PHONY: .venv/.done
endif
.venv/.done: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Kinema needs Python 3.11 or later: make setup PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@rm -f .venv 2>/dev/null || true # A link, whose environment is another folder's.
	@echo "Installing into .venv (several GB)"
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	@pwd -P > $@

demo: setup demo-data ## Run the whole job on generated clips: extract, train, evaluate, predict
	$(BIN)/kinema extract --config configs/demo.yaml
	$(BIN)/kinema train --config configs/demo.yaml --run demo
	$(BIN)/kinema evaluate data/runs/demo
	$(BIN)/kinema predict data/runs/demo data/demo/videos/Grow/v_Grow_g01_c01.*
	@echo "The run is in data/runs/demo: open report.html in a browser; metrics.json is for scripts."

demo-data: data/demo/splits/classInd.txt ## Generate the demo clips
data/demo/splits/classInd.txt: | setup
	$(BIN)/python scripts/make_demo_data.py data/demo --pairs changes orbits --groups $(DEMO_GROUPS) --clips $(DEMO_CLIPS)

extract: setup ## Compute the features of CONFIG's clips that are not cached yet
	$(BIN)/kinema extract --config "$(CONFIG)" $(ARGS)

train: setup ## Train RUN with the settings in CONFIG
	$(BIN)/kinema train --config "$(CONFIG)" --runs "$$(dirname "$(BUNDLE)")" --run "$$(basename "$(BUNDLE)")" $(ARGS)

evaluate: setup ## Evaluate RUN on its test split
	$(BIN)/kinema evaluate "$(BUNDLE)" $(ARGS)

predict: setup ## Classify VIDEO with RUN
	$(BIN)/kinema predict "$(BUNDLE)" $(VIDEO) $(ARGS)

# One thread per test process: with more, they wait for each other. Some tests only wait, so there are three processes.
test: setup ## Run the tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: setup ## Check style and the order of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

bench: demo ## Measure the speed of this machine: tables and rates go to OUT
	$(BIN)/python scripts/bench/extraction.py --out $(OUT)/extraction $(ARGS)
	$(BIN)/python scripts/bench/training.py --out $(OUT)/training
	$(BIN)/python scripts/bench/latency.py --run data/runs/demo --video data/demo/videos/Grow/v_Grow_g01_c01.* --out $(OUT)/latency
	$(BIN)/python scripts/bench/scale.py --clips $(CLIPS) --work $(OUT)/work --out $(OUT)/scale

clean: ## Remove the demo and all caches; keeps your data, features and runs
	rm -rf data/demo data/runs/demo build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find pipeline scripts tests -name __pycache__ -prune -exec rm -rf {} +
