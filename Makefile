# Each target sets up what it needs. `make demo` and `make test` work on a fresh machine.
#
#   VENV=path      another environment (default .venv)
#   PYTHON=python  the interpreter that makes it, 3.11 or later (default python3)
#   INSTALLED=1    VENV already holds the package, from a wheel for instance: install nothing
#   WORKERS=n      processes that test side by side, one thread each (default: as many as there are processors)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test test-fast test-full style quality clean

PYTHON ?= python3
VENV ?= .venv
INSTALLED ?=
WORKERS ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
BIN := $(VENV)/bin
STAMP := $(VENV)/.aiao-installed

# Tests reach this machine and nothing else; `aiao` and `hf-aiao` are found as after activation.
IN_VENV = PATH="$$(cd "$(BIN)" && pwd):$$PATH"
# Workers take whole files, the slowest first, and two on one processor would only wait for each other's threads.
PYTEST = $(IN_VENV) OMP_NUM_THREADS=1 "$(BIN)/pytest" --allow-hosts=127.0.0.1,::1,localhost --allow-unix-socket \
  -n $(WORKERS) --dist loadfile --no-loadscope-reorder

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*##/make \1:/p' Makefile

ifeq ($(INSTALLED),1)
install:
	@test -x "$(BIN)/aiao" || { echo "INSTALLED=1, but $(BIN)/aiao is not there: run make without INSTALLED=1." >&2; exit 1; }
else
install: $(STAMP)  ## make .venv with the package (editable) and the aiao command
endif

# The package is editable, so only these files call for a new installation.
$(STAMP): setup.cfg pyproject.toml .ci/constraints.txt Makefile
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "aiao_diffusers needs Python 3.11 or later; $(PYTHON) is $$("$(PYTHON)" --version 2>&1 || true)." >&2; \
	  echo "Name another one, for instance: make install PYTHON=python3.12" >&2; exit 1; }
	@"$(BIN)/python" -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear "$(VENV)"
	@"$(BIN)/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(VENV) was made with an older Python than 3.11: remove that folder and run make again." >&2; exit 1; }
	"$(BIN)/python" -m pip install --disable-pip-version-check -c .ci/constraints.txt -e '.[dev,plots]'
	@touch "$@"

demo: install  ## verdicts on the shipped model and its descendants
	$(IN_VENV) "$(BIN)/aiao" demo

test: install  ## every test, slow ones too; of the largest sweeps a sample
	$(PYTEST)

test-fast: install  ## all but the tests that take seconds
	$(PYTEST) -m "not slow"

test-full: install  ## every test, with every case of every sweep
	AIAO_TESTS=full $(PYTEST)

style: install  ## rewrite the code in the house style
	"$(BIN)/ruff" check --fix .
	"$(BIN)/ruff" format .

quality: install  ## style and types, changing nothing
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy"

clean:  ## remove build products and caches, keep the environment
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
