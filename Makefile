# make demo   sets everything up, runs experiments/quickstart.yaml, prints the leaderboard, writes a figure and the report
# make test   the same set-up, then the tests
# make lint   the same set-up, then ruff and mypy

PYTHON  ?= python3
TORCH   ?= torch==2.14.1 torchvision==0.29.1
VENV    ?= .venv
BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := $(wildcard csrc/*) setup.py pyproject.toml

.PHONY: setup demo test lint clean

setup: $(VENV)/.package

demo: setup
	$(BIN)/python -m rio_bench run experiments/quickstart.yaml
	$(BIN)/python -m rio_bench analyze experiments/quickstart.yaml --output results/quickstart/analysis.png
	$(BIN)/python -m rio_bench report experiments/quickstart.yaml

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info rio_bench/*.so

# A stamp a step: what is done is not done again, whichever target comes next.

$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("rio_bench needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	@echo "== 1/3  $(TORCH) into $(VENV) (PyPI: about 3 GB to download, 6 GB on disk)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH) setuptools ninja pybind11
	@touch $@

$(VENV)/.detectron2: $(VENV)/.torch rio_bench/detection/install_detectron2.py
	@echo "== 2/3  Detectron2"
	$(BIN)/python rio_bench/detection/install_detectron2.py
	@touch $@

$(VENV)/.package: $(VENV)/.detectron2 $(SOURCES)
	@echo "== 3/3  rio_bench and its C++ extension"
	PATH="$(abspath $(BIN)):$$PATH" $(PIP) --no-build-isolation --editable '.[test,lint]'
	@$(BIN)/python -m rio_bench doctor
	@touch $@
