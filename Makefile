# Each target works alone on a machine that has Python >= 3.11, pip and make. `make help` lists them.

PYTHON ?= python3
WORKERS ?= 2# processes of the tests; 0 = the tests run in pytest itself
ARGS ?=# more arguments: make test ARGS="-k episode", make demo ARGS="--help"

BIN := .venv/bin
INSTALLED := .venv/.installed
PEERS := .venv/.peers
# One thread a worker: torch's threads wait for one another by spinning, and on 2 busy cores that took ten times as long.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

.DEFAULT_GOAL := help
.PHONY: help demo test test-all check bench wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## learn new classes of images, voices and texts, offline, from what the package carries
	$(BIN)/multifsl demo $(ARGS)

test: $(INSTALLED) ## the tests, but for the slow ones
	$(PYTEST) $(ARGS)

test-all: $(INSTALLED) ## the tests, the slow ones too
	$(PYTEST) -m "" $(ARGS)

check: $(INSTALLED) ## format, style, types and import rules
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(PEERS) ## time multifsl beside other packages, half an hour: docs/performance.md (one alone: ARGS=maml)
	$(BIN)/python -m benchmarks --save $(ARGS)

wheel: $(INSTALLED) ## build the sdist, and the wheel from it, into dist/
	rm -rf dist
	$(BIN)/python -m build --no-isolation

clean: ## remove what the other targets made, except .venv
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find multifsl encoders tasks tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# Installed anew only when what is to be installed has changed.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[offline,dev]"
	$(BIN)/python -m pip install --no-deps resemblyzer==0.1.4 # for its weights; what it imports is not needed
	@touch $@

$(PEERS): $(INSTALLED)
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[offline,dev,bench]"
	@touch $@

# The second way is for systems, such as Debian without python3-venv, whose Python lacks ensurepip.
$(BIN)/python:
	@command -v "$(PYTHON)" > /dev/null || { \
	  echo "no '$(PYTHON)' here: install Python 3.11 or newer, or say where it is: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "multifsl needs Python 3.11 or newer, and '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1). Name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	"$(PYTHON)" -m venv .venv || { \
	  "$(PYTHON)" -m venv --clear --without-pip .venv && "$(PYTHON)" -m pip --python .venv install pip; } || { rm -rf .venv; exit 1; }
