# Two commands for a newcomer: `make demo` and `make test`. Everything lives in .venv; nothing else is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
# Locked versions by hash, wheels only: nothing is compiled here. Bytecode is written when a module is first used.
INSTALL := $(PIP) install --quiet --no-deps --require-hashes --only-binary :all: --no-compile
# Two at a time, whole files: half of the tests wait for a broker. ARGS="-n 0" runs one after the other.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
# Where this is set, as in many containers, every process would compile all libraries anew: three seconds a worker.
unexport PYTHONDONTWRITEBYTECODE
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DELETE_ON_ERROR:

.PHONY: help install dev demo test test-gpu check format bench lock audit clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 10

install: $(VENV)/.installed ## .venv with headrace in it

demo: install ## one minute of live scoring; ARGS="--seconds 20 --json"
	@$(BIN)/headrace demo $(ARGS)

test: dev ## all tests; ARGS="-k broker"
	@$(PYTEST) $(ARGS)

test-gpu: $(VENV)/.gpu ## the tests of the gpu predictor, on nvForest's CPU device; installs 2.3 GB to .venv
	$(BIN)/python -m pytest tests/models -k gpu $(ARGS)

check: dev ## what CI runs: format, lint, types, import contracts, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) $(ARGS)

format: dev ## format, and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install ## headrace bench; ARGS="throughput --json"
	@$(BIN)/headrace bench $(or $(ARGS),throughput)

dev: $(VENV)/.dev

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'headrace needs Python 3.11 or newer: make PYTHON=python3.12 ...' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo 'no venv (Debian: apt-get install python3-venv)' >&2; exit 1; }

$(VENV)/.installed: $(VENV)/pyvenv.cfg requirements.lock pyproject.toml
	@echo 'installing headrace to $(VENV) (once, under a minute)'
	@$(INSTALL) -r requirements.lock
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed requirements-dev.lock
	@echo 'installing the test tools to $(VENV) (once)'
	@$(INSTALL) -r requirements-dev.lock
	@touch $@

$(VENV)/.gpu: $(VENV)/.dev requirements-gpu.lock
	@echo 'installing the extra gpu to $(VENV) (once, 2.3 GB)'
	@$(INSTALL) -r requirements-gpu.lock
	@touch $@

# Needs no tool beforehand: uv comes to a folder of its own.
LOCK := build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-annotate --no-header --only-binary :all: $(ARGS) pyproject.toml --group build
lock: ## lock the dependencies again; ARGS=--upgrade for newer versions
	@test -x build/lock/bin/uv || { $(PYTHON) -m venv build/lock && build/lock/bin/pip install --quiet uv; }
	$(LOCK) -o requirements.lock
	$(LOCK) --group dev -c requirements.lock -o requirements-dev.lock
	$(LOCK) --group dev --extra gpu -c requirements-dev.lock -o requirements-gpu.lock

# Not a part of check: it asks the network about every package. --strict: a package of which no advisories are to be
# had, as from a mirror that has none, fails instead of passing for safe.
audit: ## ask PyPI's advisories about every locked package; needs the network
	@test -x build/audit/bin/pip-audit || \
	  { $(PYTHON) -m venv build/audit && build/audit/bin/pip install --quiet pip-audit; } || \
	  { rm -rf build/audit; echo 'make audit: pip-audit could not be installed: no network?' >&2; exit 1; }
	@build/audit/bin/pip-audit --strict --require-hashes --disable-pip --progress-spinner off \
	  -r requirements-dev.lock || { echo 'make audit: failed, or no advisories to be had: see above' >&2; exit 1; }

clean: ## remove .venv and all that was built
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
