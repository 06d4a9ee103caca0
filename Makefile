SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
export PYTHONUTF8 := 1

# Tests run in processes of one thread, three with CI=true, where some wait for SLURM most of their time. Tiers: test-fast
# excludes `slow` and `ci`, test excludes `ci`, CI=true runs all.
TESTS := $(BIN)/python -m pytest --quiet --numprocesses $(if $(filter true,$(CI)),3,2) --dist worksteal
TIER := $(if $(filter true,$(CI)),,-m "not ci")

.DEFAULT_GOAL := help
.PHONY: help setup train test test-fast lint format figures run-figures config docs lock clean-runs

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: .venv/ready ## Make .venv with the locked packages (does nothing when they are installed)

.venv/ready: requirements.txt requirements-uv.txt pyproject.toml
	@echo "installing the locked packages into .venv (some minutes, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-uv.txt
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes --requirement requirements.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch .venv/ready

train: setup ## Train the embedded default here: a CLIP in minutes, its zero-shot accuracy, its figures
	@$(BIN)/python train.py

test: setup ## Run the tests (with CI=true also those that take minutes)
	@OMP_NUM_THREADS=1 $(TESTS) $(TIER)

test-fast: setup ## Run the short tests
	@OMP_NUM_THREADS=1 $(TESTS) -m "not slow and not ci"

lint: setup ## Check format, lint, spelling and types
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/codespell
	@$(BIN)/mypy

format: setup ## Format the code and apply the fixes of the linter
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

figures: setup ## Draw the paper's figures from its printed numbers into docs/figures
	@$(BIN)/python -m experiments.figures.gallery --paper --out docs/figures

run-figures: setup ## Draw the figures of the newest run again
	@$(BIN)/python -m experiments.figures.run_figures runs/latest

config: setup ## Print a composed run: make config RUN="model=vit_l14 data=yfcc"
	@$(BIN)/python train.py $(RUN) --cfg job

docs: setup ## Build the documentation as a site into site/; a warning is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html; with search: $(BIN)/python -m http.server --directory site"

lock: setup ## Resolve pyproject.toml into requirements.txt
	@$(BIN)/uv pip compile --quiet --python-version 3.11 --universal --generate-hashes --no-annotate --no-header \
		--extra dev pyproject.toml --output-file requirements.txt

clean-runs: ## Delete runs/ after confirmation
	@read -r -p "Delete everything in runs/? [y/N] " answer && [ "$$answer" = y ] && rm -rf runs
