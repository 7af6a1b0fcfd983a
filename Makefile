# make demo: a first figure · make check: lint, types and the quick tests · make test: all that runs in minutes on a CPU
# make nightly: what takes longer · make test-gpu · make test-browser: pages in Chromium · make bench: measured times
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile
TEST := $(BIN)/python -m pytest --benchmark-disable -q
TESTS := $(TEST) -n $(WORKERS) --dist worksteal
ELSEWHERE := nightly or gpu or browser
TIMED = $(shell grep -rl 'mark\.timing' tests --include='test_*.py')  # the others are not even imported
# pip compiles nothing: the first process that imports a module does, and writes it down for the others
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo check test nightly test-gpu test-browser lint style types compiled bench clean

demo: .venv/installed
	$(BIN)/python run.py

check: lint
	$(TESTS) -m 'not (slow or timing or $(ELSEWHERE))'

test: .venv/installed-dev  # what measures time runs afterwards, alone
	$(TESTS) -m 'not (timing or $(ELSEWHERE))'
	$(TEST) -m 'timing and not ($(ELSEWHERE))' $(TIMED)

nightly: .venv/installed-dev
	$(TESTS) -m nightly

test-gpu: .venv/installed-dev
	$(TEST) -m gpu

test-browser: .venv/installed-dev
	$(TEST) -m browser

lint: style types

style: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/installed-dev
	$(BIN)/mypy

compiled: .venv/installed-dev  # the tests and what they import; an error is told by the tests themselves
	-@$(TEST) --collect-only > /dev/null

bench: .venv/installed-dev
	mkdir -p outputs
	$(BIN)/python -m pytest tests/bench -m "" --benchmark-only --benchmark-json=outputs/benchmark.json

clean:
	rm -rf .venv outputs

.venv/bin/python:
	$(PYTHON) -m venv .venv
	-$(INSTALL) --upgrade pip  # one that came with Python works too, but takes longer to choose versions

.venv/installed: pyproject.toml | .venv/bin/python
	$(INSTALL) --editable .
	touch $@

.venv/installed-dev: pyproject.toml | .venv/bin/python
	$(INSTALL) --editable '.[dev]'
	touch .venv/installed $@
