PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
INSTALLED := $(VENV)/.installed

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Stages, dvc and tests call `python`: the one of the virtual environment.
export PATH := $(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help install repro sweep test bench lint format lock base

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## set up .venv from requirements.lock (PYTHON=python3.12 chooses another Python)

repro: install ## run the pipeline: dvc repro
	$(BIN)/dvc repro

sweep: install ## run a grid of experiments (GRID=paper|full|reduced|6-1,3-3 SEEDS=3): lopside sweep
	$(BIN)/lopside sweep $(or $(GRID),paper) --seeds $(or $(SEEDS),1)

# A file's tests stay in one process, for its fixtures; in the order of tests/conftest.py, not the largest files first.
test: install ## run all tests, one process more than there are cores
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

bench: install ## time the workflow itself against the plain recipe, about 20 minutes
	$(BIN)/python -m tests.bench

lint: install ## check style and types: ruff, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install ## rewrite the code in the style that lint checks
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

base: ## ship the base models that `dvc repro` in recipes/base has trained
	cp recipes/base/outputs/second/* models/docs-bart-mini/
	cp recipes/base/outputs/micro/* models/docs-bart-micro/

# Versions without hashes, because the builds of torch (CPU, CUDA) differ in them, and without the GPU packages of one
# build: pip adds those that torch needs.
lock: install ## pin the newest versions that fit pyproject.toml in requirements.lock
	CUSTOM_COMPILE_COMMAND='make lock' $(BIN)/pip-compile --quiet --upgrade --extra dev --strip-extras \
		--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --output-file - pyproject.toml | \
		sed -E 's/^(torch==[0-9.]+)[+][a-z0-9.]+/\1/' | \
		awk '/^[^ #]/ { skip = /^(nvidia-|cuda-|triton)/ } !skip' > $(VENV)/requirements.lock
	mv $(VENV)/requirements.lock requirements.lock

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; \
		sys.exit(None if sys.version_info >= (3, 11) else f"error: Python 3.11 or later is needed, $(PYTHON) is {v}")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@
