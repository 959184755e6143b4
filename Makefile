# `make` alone prints what there is. Every target makes its own environment in .venv first; the second call is quick.

VENV := .venv
BIN := $(VENV)/bin
# Python 3.11 or newer: the one that is called `python3` if it is new enough, or else the first of those named.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
# More options for pip. Without an NVIDIA card this saves gigabytes:
#   make demo PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_FLAGS ?=
# Options that are passed on: make demo ARGS="--out my-folder"
ARGS ?=
# Tests run two files at a time; a test of one file stays in one process.
PARALLEL := --numprocesses 2 --dist loadfile

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check lab docs readme export clean-notebooks \
	check-export check-notebooks check-readme check-lint check-types test-fast test-notebooks test-all browser

help: ## What there is
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{printf "make %-16s %s\n", $$1, $$2}'

# ---------------------------------------------------------------- the environment

define install
	@test -n "$(PYTHON)" || { echo "pathloop needs Python 3.11 or newer: install it, or name it: make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -m venv $(VENV) </dev/null || { echo "$(PYTHON) cannot make an environment (Debian and Ubuntu: apt-get install python3-venv)"; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) --constraint constraints.txt --editable "$(1)" </dev/null
	@touch $@
endef

$(VENV)/.runtime: pyproject.toml constraints.txt
	$(call install,.)

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.runtime
	$(call install,.[dev])

# ---------------------------------------------------------------- for users

demo: $(VENV)/.runtime ## The whole loop on embedded data; prints where its report lies
	$(BIN)/pathloop demo $(ARGS)

lab: $(VENV)/.dev ## JupyterLab with the notebooks
	$(BIN)/jupyter lab --notebook-dir=. $(ARGS)

# ---------------------------------------------------------------- for developers

export: $(VENV)/.dev ## Write the package from the notebooks, and clean them
	$(BIN)/nbdev_export
	$(BIN)/python tools/notebooks.py clean

clean-notebooks: $(VENV)/.dev ## Remove editors' metadata from the notebooks; outputs stay
	$(BIN)/python tools/notebooks.py clean $(ARGS)

readme: $(VENV)/.dev ## README.md from index.ipynb
	$(BIN)/python tools/readme.py

docs: $(VENV)/.dev ## The site, in _docs (needs Quarto)
	@command -v quarto >/dev/null || { echo "the site is made by Quarto, which is not installed: see https://quarto.org/docs/get-started/"; exit 1; }
	@touch README.md # newer than index.ipynb: nbdev leaves it to 'make readme'
	PATH="$(CURDIR)/$(BIN):$$PATH" nbdev_docs --skip_folder_re '^([_.]|pathloop$$|tests$$|tools$$|build$$|dist$$|studies$$|pathloop-demo$$)'

check: check-lint check-export check-notebooks check-readme check-types test-fast ## All quick checks, before each commit

check-lint: $(VENV)/.dev
	$(BIN)/ruff check pathloop tests tools bench

check-export: $(VENV)/.dev
	$(BIN)/python tools/check_export.py

check-notebooks: $(VENV)/.dev
	$(BIN)/python tools/notebooks.py check

check-readme: $(VENV)/.dev
	$(BIN)/python tools/readme.py --check

check-types: $(VENV)/.dev
	$(BIN)/mypy

test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest -q $(PARALLEL) -m "not slow and not browser" $(ARGS)

test: check-lint check-export check-notebooks check-readme check-types test-notebooks test-all ## Everything: checks, notebooks, all tests

test-notebooks: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --do_print --timing

test-all: $(VENV)/.dev browser
	$(BIN)/python -m pytest $(PARALLEL) --durations=15 -m "not browser" $(ARGS)
	$(BIN)/python -m pytest --durations=5 -m browser $(ARGS) || [ $$? = 5 ] # 5: none was chosen

browser:
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
		echo "no Chromium found: the browser tests will be skipped (Debian: apt-get install chromium)"; exit 0; fi; \
	echo "installing Chromium for the browser tests"; \
	{ apt-get update -qq; DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } \
		</dev/null >/dev/null || echo "Chromium could not be installed: the browser tests will be skipped"
