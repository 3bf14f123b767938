PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: run test lint

run: .venv/run  ## distil scikit-learn's digits in about two minutes
	$(BIN)/python main.py --config=configs/digits.py --workdir=runs/digits

test: .venv/test  ## all tests but the slow ones
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

lint: .venv/test  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

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
