PYTHON ?= python3
VENV ?= .venv
JAX ?= # such as jax==0.10.2; without it the newest that this Python can have
BIN := $(VENV)/bin
# The ends of what is supported.
OLDEST ?= python3.11
NEWEST ?= python3.12
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: run test test-all matrix torture determinism fuzz lint bench bench-scaling bench-training

run: $(VENV)/run  ## distil scikit-learn's digits in about three minutes
	$(BIN)/python main.py --config=configs/digits.py --workdir=runs/digits

test: $(VENV)/test  ## all tests but the slow ones
	$(PYTEST) -m "not slow"

test-all: $(VENV)/test  ## and the slow ones, and all generated cases: half an hour
	ALL_CASES=1 $(PYTEST)

matrix:  ## the tests on the oldest and the newest Python (NEWEST=path/to/it) and JAX
	$(MAKE) test VENV=.venv-oldest PYTHON=$(OLDEST) JAX=jax==0.10.2
	$(MAKE) test VENV=.venv-newest PYTHON=$(NEWEST)

torture: $(VENV)/test  ## kill runs 20 times, compare with those left in peace: minutes
	$(BIN)/python -m tests.torture $(ARGS)

lint: $(VENV)/test  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

determinism: $(VENV)/test  ## which outputs have the same bits again, on four devices, and by the JAX of `make matrix`
	$(BIN)/python -m tests.determinism $(ARGS)

fuzz: $(VENV)/test  ## five minutes of damaged archives for the reader of sets
	$(BIN)/python -W ignore -m tests.fuzz_npz $(ARGS)

bench: $(VENV)/bench  ## an inner step beside eager PyTorch, minutes
	$(BIN)/python -m benchmarks.update_step $(ARGS)

bench-scaling: $(VENV)/bench  ## how its cost grows with images, classes and segments
	$(BIN)/python -m benchmarks.scaling $(ARGS)

bench-training: $(VENV)/bench  ## training of networks beside eager PyTorch
	$(BIN)/python -m benchmarks.training $(ARGS)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dasm_jax needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)

# Stamps: a second call installs nothing.
$(VENV)/run: requirements.txt | $(BIN)/python
	$(PIP) -r requirements.txt $(JAX)
	@touch $@

$(VENV)/test: pyproject.toml $(VENV)/run
	$(PIP) -e ".[dev]" $(JAX)
	@touch $@

# Of PyTorch's own index the build for CPU, which is a tenth of the size.
$(VENV)/bench: pyproject.toml $(VENV)/run
	$(PIP) -e ".[dev,bench]" --extra-index-url https://download.pytorch.org/whl/cpu
	@touch $@
