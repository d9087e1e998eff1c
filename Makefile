PYTHON ?= python3
BIN := .venv/bin

.PHONY: help tune test check model clean

help: ## list what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

tune: .venv/installed ## tune the default model on this machine; writes results/ and reports/
	$(BIN)/fp4bench tune

test: .venv/developed ## run the tests
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile

check: .venv/developed ## ruff and strict types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

model: .venv/developed ## train the byte-level transformer of models/bytes anew
	$(BIN)/python scripts/train_bytes.py

clean: ## remove the environment
	rm -rf .venv

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml kernels/pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch -e ./kernels -e .
	touch $@

.venv/developed: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ./kernels -e '.[dev]'
	touch $@
