# The two commands of the README are `make demo` and `make test`; each sets up what it needs.
PYTHON_BIN := .venv/bin/python
# what the libraries write for themselves stays in this folder, and what they leave in the temporary one goes
CACHE := $(CURDIR)/.cache
IN_CLEAN_TMP = tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && TMPDIR=$$tmp XDG_CACHE_HOME=$(CACHE)
export MMENGINE_HOME := $(CACHE)/mmengine
export MPLCONFIGDIR := $(CACHE)/matplotlib
export TORCH_HOME := $(CACHE)/torch
export TORCHINDUCTOR_CACHE_DIR := $(CACHE)/inductor
export TRITON_CACHE_DIR := $(CACHE)/triton
export NUMBA_CACHE_DIR := $(CACHE)/numba
SHELL := /bin/bash
# files of tests beside each other, each with one thread: twice as fast on two cores as one after the other with two
CORE = tests/optim tests/layers tests/pretrained tests/classes tests/measure
PYTEST = OMP_NUM_THREADS=1 $(1) -m pytest -n auto --maxprocesses 4 --dist loadfile --basetemp=$(CACHE)/$(2)

.PHONY: help setup operators demo evidence data test test-all test-upstream test-core test-matrix coverage docs lint clean

help:
	@echo 'make demo      teach a detector new classes, by plain fine-tuning and by olor_mm, and compare (5 minutes after set-up)'
	@echo 'make test      run lint and the quick tests (12 minutes after set-up)'
	@echo 'make test-all  run lint and all tests, the slow ones too'
	@echo 'make test-upstream  run the quick tests with the upstream packages of OpenMMLab, in .venv-upstream'
	@echo 'make test-core run the tests of the wings that need torch alone (2 minutes), with PYTHON or in .venv-core'
	@echo 'make test-matrix  run these with several versions of Python and torch, and print the table of the docs'
	@echo 'make operators  compile the operators of mmcv (20 minutes), where set-up found no wheel'
	@echo 'make coverage  run the quick tests, and list the branches of olor_mm/ that none of them takes'
	@echo 'make evidence  run the missing runs of the studies (hours), and print their pages'
	@echo 'make data      write the weights and small data sets of the configs into data/'
	@echo 'make docs      build the documentation into docs/en/_build'
	@echo 'make lint      run ruff, as a linter and as a formatter, and mypy'
	@echo 'make clean     delete runs and caches; .venv and data stay'

setup:
	@bash tools/setup_env.sh

operators:
	@bash tools/setup_env.sh onedl operators

demo: setup
	@$(IN_CLEAN_TMP) $(PYTHON_BIN) demo/run_demo.py

# FOLDERS='--pacs DIR --caltech DIR --imagenet DIR', see benchmarks/evidence/folders.py; without them, what needs none
evidence: setup
	@$(IN_CLEAN_TMP) $(PYTHON_BIN) benchmarks/evidence/natural.py $(FOLDERS)
	@$(IN_CLEAN_TMP) $(PYTHON_BIN) benchmarks/evidence/budget.py
	@$(IN_CLEAN_TMP) $(PYTHON_BIN) benchmarks/evidence/study.py

data: setup
	@$(IN_CLEAN_TMP) $(PYTHON_BIN) tools/dataset_converters/embedded.py

test: setup lint
	@$(IN_CLEAN_TMP) $(call PYTEST,$(PYTHON_BIN),pytest)

test-all: setup lint
	@$(IN_CLEAN_TMP) $(call PYTEST,$(PYTHON_BIN),pytest) -m ''

test-upstream:
	@bash tools/setup_env.sh upstream
	@$(IN_CLEAN_TMP) $(call PYTEST,.venv-upstream/bin/python,pytest-upstream)

.venv-core/.ready: requirements/core.txt
	python3 -m venv .venv-core
	.venv-core/bin/python -m pip --quiet install torch torchvision -r requirements/core.txt
	@touch $@

test-core: $(if $(PYTHON),,.venv-core/.ready)
	@mkdir -p $(CACHE)
	@$(IN_CLEAN_TMP) $(call PYTEST,$(or $(PYTHON),.venv-core/bin/python),pytest-core) $(CORE)

test-matrix:
	@python3 tools/test_matrix.py

coverage: setup
	@$(IN_CLEAN_TMP) $(call PYTEST,$(PYTHON_BIN),pytest-coverage) --cov --cov-report=term

docs: setup
	@$(IN_CLEAN_TMP) $(PYTHON_BIN) -m sphinx --fail-on-warning --keep-going -q docs/en docs/en/_build
	@echo 'docs/en/_build/index.html'

lint: setup
	@$(PYTHON_BIN) -m ruff check .
	@$(PYTHON_BIN) -m ruff format --check --quiet .
	@$(PYTHON_BIN) -m mypy --cache-dir $(CACHE)/mypy

clean:
	rm -rf work_dirs docs/en/_build .cache .pytest_cache .ruff_cache
