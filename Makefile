# Two commands for a stranger: `make run` and `make test`. Both set up `.venv` by themselves.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

RUN ?= runs/pocket
BENCH ?= runs/bench

.PHONY: run test lint check browser bench reference picture screenshots bench-page clean
.DEFAULT_GOAL := help

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

run: $(VENV)/ready  ## the main job on the embedded pocket world: a table, a picture, a report
	$(BIN)/rheostat run $(ARGS)

test: $(VENV)/ready  ## the tests
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal $(ARGS)

lint: $(VENV)/ready  ## ruff and mypy
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy

check: lint test  ## everything that CI checks

browser:  ## Debian's chromium for the playground's tests, which skip without it; needs root
	command -v chromium || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; }

reference: $(VENV)/ready  ## write docs/cli.md, configuration.md, policy.md and methods.md anew
	$(BIN)/python -m rheostat.reference

picture: $(VENV)/ready  ## write docs/dials.png anew, off the run RUN=runs/pocket
	$(BIN)/python -m rheostat report $(RUN)
	cp $(RUN)/pictures/dials.png docs/dials.png

screenshots: $(VENV)/ready  ## write the playground's pictures anew
	$(BIN)/python -m tests.gateway.screenshots

bench-page: $(VENV)/ready  ## write docs/bench.md and its pictures anew, off the run BENCH=runs/bench
	$(BIN)/python -m rheostat.bench_page $(BENCH) --to docs/bench.md

bench: $(VENV)/ready  ## the benchmarks of the hot paths beside their rivals
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,bench]'
	for each in generation scoring training evaluation concurrency gateway; do $(BIN)/python benchmarks/$$each.py || exit 1; done

clean:  ## remove the virtual environment and the caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
