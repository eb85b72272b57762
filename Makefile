# Every target sets up what it needs. `make quickstart` is the place to begin.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install quickstart test test-all lint bench docs

install: .venv/installed

.venv/installed: pyproject.toml
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

quickstart: install
	$(BIN)/sailyard run flows/configs/quickstart.toml

test: install
	$(BIN)/python -m pytest -q

test-all: install
	$(BIN)/python -m pytest -q -m 'not weights and not gpu'

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: install
	for bench in benchmarks/bench_*.py; do $(BIN)/python $$bench || exit 1; done

docs: install
	$(BIN)/python -c 'import pathlib, schemas.tables; pathlib.Path("docs/tables.md").write_text(schemas.tables.markdown())'
