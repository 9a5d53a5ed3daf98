# Two commands for a newcomer: `make demo` and `make test`. Both set up what they need in $(VENV).
# Another interpreter: make test PYTHON=python3.13 VENV=.venv313

PYTHON ?= python3
VENV ?= .venv
OUT ?= out
# Tests compile thousands of small programs: 1 does so without XLA's optimizations, 0 as users do.
QUICK ?= 1
# Each of these programs is compiled once in an environment and kept there for all later runs.
PROGRAMS := JAX_COMPILATION_CACHE_DIR=$(abspath $(VENV))/programs \
	JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1

BIN := $(VENV)/bin
# Python compiles what it imports: to compile all that is there takes longer than to install it.
# It keeps that, for the next process: otherwise each one takes 10 s longer to begin.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
DEMO := $(VENV)/.ready-demo
TEST := $(VENV)/.ready-test
DEV := $(VENV)/.ready-dev
DOCS := $(VENV)/.ready-docs

.PHONY: help demo test test-slow oracles peers lint types check docs notebooks bench clean

help:
	@echo "make demo    train the demo models; figures and metrics.json go to $(OUT)/"
	@echo "make test    run the tests; make test-slow the few that take more than some seconds each"
	@echo "make oracles install the other packages that some tests compare with (torch and more: large)"
	@echo "make peers   install what only the benchmarks compare with"
	@echo "make check   lint, types and tests"
	@echo "make notebooks   execute the notebooks again, in place"
	@echo "make docs    build the site into site/; a warning is an error"
	@echo "make bench   paired timings (minutes, wants a quiet machine)"
	@echo "make clean   remove the environments, $(OUT)/ and site/"

demo: $(DEMO)
	$(BIN)/python scripts/train.py --out $(OUT)

test: $(TEST)
	QUICK_COMPILER=$(QUICK) $(PROGRAMS) $(BIN)/python -m pytest -n auto --dist loadfile -m 'not slow'

test-slow: $(TEST)
	QUICK_COMPILER=$(QUICK) $(PROGRAMS) $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m slow

oracles: $(TEST)
	$(PIP) -e '.[oracles]'
	$(PIP) --no-deps timm==1.0.31 celer==0.7.4 torch-optimi==0.3.3 heavyball==3.2.1 \
	    lion-pytorch==0.2.5 schedulefree==1.4.1 mosaicml==0.32.1
	$(PIP) --no-deps --ignore-requires-python emerging-optimizers==0.3.0

peers: oracles
	$(PIP) -e '.[peers]'

lint: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(DEV)
	$(BIN)/mypy

check: lint types test test-slow

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: $(TEST)
	$(BIN)/python scripts/notebooks.py

bench: $(DEMO)
	$(BIN)/python scripts/bench.py

clean:
	rm -rf $(VENV) .venv-oldest $(OUT) site

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "missing: $(PYTHON). Install Python 3.11 or newer, or name one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "too old: $$($(PYTHON) --version). wdjax needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "missing: the venv module of $(PYTHON). On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# One rule for the four sets of extras: .ready-demo, .ready-test, .ready-dev, .ready-docs.
$(DEMO): EXTRAS := plot,examples
$(TEST): EXTRAS := test
$(DEV): EXTRAS := dev
$(DOCS): EXTRAS := docs
$(DEMO) $(TEST) $(DEV) $(DOCS): $(BIN)/python pyproject.toml
	@$(PIP) -e '.[$(EXTRAS)]' || { echo "pip could not install wdjax[$(EXTRAS)]: see its message above; it needs a reachable package index (PyPI)"; exit 1; }
	@touch $@
