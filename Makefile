SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
# One thread a core; the hub is asked only by those who set these themselves.
export PYTHONUTF8 := 1

.DEFAULT_GOAL := help
.PHONY: help setup train test test-fast lint format types figures config lock clean-runs

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: .venv/ready ## Make .venv with the locked packages (nothing to do when they stand)

.venv/ready: requirements.txt requirements-uv.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-uv.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --requirement requirements.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch .venv/ready

lock: ## Resolve pyproject.toml anew into requirements.txt
	$(BIN)/uv pip compile --quiet --python-version 3.11 --universal --generate-hashes --no-annotate --no-header --extra dev pyproject.toml --output-file requirements.txt
