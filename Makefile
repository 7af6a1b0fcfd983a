# make demo: a first figure · make test: the test suite · make test-browser: pages in Chromium · make lint · make bench
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-browser lint bench clean

demo: .venv/installed
	$(BIN)/python run.py

test: .venv/installed-dev
	$(BIN)/python -m pytest --benchmark-disable

test-browser: .venv/installed-dev
	$(BIN)/python -m pytest -m browser

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

bench: .venv/installed-dev
	mkdir -p outputs
	$(BIN)/python -m pytest tests/bench --benchmark-only --benchmark-json=outputs/benchmark.json

clean:
	rm -rf .venv outputs

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/installed-dev: pyproject.toml .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@
