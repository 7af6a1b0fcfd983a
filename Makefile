# make demo: a first figure · make check: lint, types and the quick tests · make test: all that runs in minutes on a CPU
# make nightly: what takes longer · make test-gpu · make test-browser: pages in Chromium · make bench: measured times
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2
TEST := $(BIN)/python -m pytest --benchmark-disable -q
ELSEWHERE := nightly or gpu or browser

.PHONY: demo check test nightly test-gpu test-browser lint bench clean

demo: .venv/installed
	$(BIN)/python run.py

check: lint
	$(TEST) -n $(WORKERS) -m 'not (slow or timing or $(ELSEWHERE))'

test: .venv/installed-dev  # what measures time runs afterwards, alone
	$(TEST) -n $(WORKERS) -m 'not (timing or $(ELSEWHERE))'
	$(TEST) -m 'timing and not ($(ELSEWHERE))'

nightly: .venv/installed-dev
	$(TEST) -n $(WORKERS) -m nightly

test-gpu: .venv/installed-dev
	$(TEST) -m gpu

test-browser: .venv/installed-dev
	$(TEST) -m browser

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

bench: .venv/installed-dev
	mkdir -p outputs
	$(BIN)/python -m pytest tests/bench -m "" --benchmark-only --benchmark-json=outputs/benchmark.json

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
