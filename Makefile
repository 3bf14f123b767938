PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: run test test-all torture determinism fuzz lint bench bench-scaling bench-training

run: .venv/run  ## distil scikit-learn's digits in about two minutes
	$(BIN)/python main.py --config=configs/digits.py --workdir=runs/digits

test: .venv/test  ## all tests but the slow ones
	$(PYTEST) -m "not slow"

test-all: .venv/test  ## and the slow ones, and all generated cases: half an hour
	ALL_CASES=1 $(PYTEST)

torture: .venv/test  ## kill runs 20 times, compare with those left in peace: minutes
	$(BIN)/python -m tests.torture $(ARGS)

lint: .venv/test  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

determinism: .venv/test  ## which outputs have the same bits again, and on four devices
	$(BIN)/python -m tests.determinism $(ARGS)

fuzz: .venv/test  ## five minutes of damaged archives for the reader of sets
	$(BIN)/python -W ignore -m tests.fuzz_npz $(ARGS)

bench: .venv/bench  ## an inner step beside eager PyTorch, minutes
	$(BIN)/python -m benchmarks.update_step $(ARGS)

bench-scaling: .venv/bench  ## how its cost grows with images, classes and segments
	$(BIN)/python -m benchmarks.scaling $(ARGS)

bench-training: .venv/bench  ## training of networks beside eager PyTorch
	$(BIN)/python -m benchmarks.training $(ARGS)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dasm_jax needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv .venv

# Stamps: a second call installs nothing.
.venv/run: requirements.txt | $(BIN)/python
	$(PIP) -r requirements.txt
	@touch $@

.venv/test: pyproject.toml .venv/run
	$(PIP) -e ".[dev]"
	@touch $@

# Of PyTorch's own index the build for CPU, which is a tenth of the size.
.venv/bench: pyproject.toml .venv/run
	$(PIP) -e ".[dev,bench]" --extra-index-url https://download.pytorch.org/whl/cpu
	@touch $@
