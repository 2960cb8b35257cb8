# The commands of the project. Each makes .venv when it is missing, and installs again only when pyproject.toml changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-all lint features bench clean

demo: $(VENV)/.core
	$(BIN)/qwenvl demo --out out

test: $(VENV)/.dev $(VENV)/.chromium
	$(BIN)/python -m pytest -q -m "not slow"

test-all: $(VENV)/.dev $(VENV)/.chromium
	$(BIN)/python -m pytest -q

lint: $(VENV)/.dev
	$(BIN)/ruff check src tests bench cookbooks
	$(BIN)/ruff format --check src tests bench cookbooks
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

features: $(BIN)/python
	$(BIN)/python tests/feature_table.py

bench: $(VENV)/.dev
	$(BIN)/qwenvl bench --out out/bench
	$(BIN)/python bench/start.py
	$(BIN)/python bench/video.py

clean:
	rm -rf $(VENV) build dist out .pytest_cache .mypy_cache .ruff_cache

# Debian's Chromium for the browser's tests, where it may be installed; without it they are skipped.
$(VENV)/.chromium: | $(BIN)/python
	@if ! command -v chromium >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	    chromium fonts-dejavu-core >/dev/null; } || echo "no Chromium: its tests are skipped"; fi
	@touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

NATIVE := setup.py $(wildcard src/qwenvl/kernels/csrc/*)

$(VENV)/.core: pyproject.toml $(NATIVE) | $(BIN)/python
	$(PIP) --editable .
	touch $@

$(VENV)/.dev: pyproject.toml $(NATIVE) | $(BIN)/python
	$(PIP) --editable ".[dev,train]"
	touch $@ $(VENV)/.core
