# Every target sets up what it needs. `make quickstart` is the place to begin.
PYTHON ?= python3
BIN := .venv/bin
OFFICIAL := .venv-official
SITE := import site; print(site.getsitepackages()[0])

.PHONY: install quickstart test test-all chaos page tracking parity lint bench ladder docs

install: .venv/installed

.venv/installed: pyproject.toml
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

quickstart: install
	$(BIN)/sailyard run flows/configs/quickstart.toml

# Two processes, a file of tests whole in one of them.
test: install
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-all: install
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m 'not official and not detectron2 and not weights and not gpu and not tracking and not page'

chaos: install
	$(BIN)/python -m pytest -q -m 'chaos or control' tests/chaos

# The page in a real Chromium (Debian: apt-get install chromium), over the packages of .venv.
page: .venv-page/installed
	.venv-page/bin/python -m pytest -q -m page tests/flows/test_page.py

.venv-page/installed: .venv/installed
	$(BIN)/python -m venv .venv-page
	$(BIN)/python -c '$(SITE)' > "$$(.venv-page/bin/python -c '$(SITE)')/sailyard.pth"
	.venv-page/bin/python -m pip install --quiet 'gradio>=6.31,<7' playwright
	touch $@

# TensorBoard and MLflow, read back.
tracking: install
	$(BIN)/python -m pip install --quiet --editable '.[tensorboard,mlflow]'
	$(BIN)/python -m pytest -q -m tracking tests/student

# The official SAM 2 beside ours, over the packages of .venv; --no-deps keeps the CUDA torch away.
parity: $(OFFICIAL)/installed
	$(OFFICIAL)/bin/python -m pytest -q -rP -m official tests/teachers/test_sam2_official.py

$(OFFICIAL)/installed: .venv/installed
	$(BIN)/python -m venv $(OFFICIAL)
	$(BIN)/python -c '$(SITE)' > "$$($(OFFICIAL)/bin/python -c '$(SITE)')/sailyard.pth"
	$(OFFICIAL)/bin/python -m pip install --quiet --no-deps sam2==1.1.0 torchvision==0.28.0 \
		'hydra-core>=1.3,<1.4' 'omegaconf>=2.3,<2.5' 'antlr4-python3-runtime==4.9.*' 'iopath==0.1.*' portalocker
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: install
	for bench in benchmarks/bench_*.py; do $(BIN)/python $$bench || exit 1; done

# Each part of the student for itself: make ladder LADDER="--seeds 1 --set train.steps=200 --folder runs/small"
ladder: install
	$(BIN)/python benchmarks/ladder.py flows/configs/ladder_*.toml $(LADDER)

docs: install
	$(BIN)/python -c 'import pathlib, schemas.tables; pathlib.Path("docs/tables.md").write_text(schemas.tables.markdown())'
