# make demo    a real job, killed and resumed          make test    the tests
# make bench   the numbers of docs/benchmarks.md       make check   lint, format, types, import floors
# make bench-growth  how cost grows, with plots
# make bench-peers  the same work by others, in an environment of its own (2 GB)
# make torture the guarantees, attacked for long       (make torture ARGS=--help: which, how long)
#
# The first call creates $(VENV) with $(PYTHON), which must be 3.11 or newer.

PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := .venv-peers
OTHERS := 3.11 3.12 3.13

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help venv demo test test-all check bench bench-growth bench-peers torture clean

help:
	@sed -n 's/^# \{0,1\}//p; /^$$/q' Makefile

venv: $(READY)

$(READY): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "aiocheckpoint needs Python 3.11 or newer, and '$(PYTHON)' is not (or does not run)."; \
	  echo "Name one that is: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 1; } >&2
	@echo "setting up $(VENV) ..."
	@"$(PYTHON)" -m venv --clear "$(VENV)" || { \
	  echo "'$(PYTHON) -m venv' failed: Debian and Ubuntu need the package python3-venv for it." >&2; exit 1; }
	@"$(BIN)/python" -m pip install -qq -c constraints.txt -e ".[dev]"
	@"$(BIN)/python" -m pip install -qq -c constraints.txt --only-binary :all: atheris 2>/dev/null \
	  || echo "no wheel of atheris for this machine: nothing is fuzzed by coverage here"
	@touch $@

demo: $(READY)
	@"$(BIN)/python" examples/demo.py $(ARGS)

test: $(READY)
	"$(BIN)/python" -m pytest -q $(ARGS)

# The same tests in every other Python found, each with its own environment. A name on PATH is no
# proof (pyenv leaves shims that fail): what counts is that it runs and says the right version.
test-all: test
	@set -e; for version in $(OTHERS); do \
	  if "$(BIN)/python" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$$version')"; then continue; fi; \
	  found=; \
	  for python in python$$version "$$HOME"/.pyenv/versions/$$version*/bin/python; do \
	    if "$$python" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$$version')" 2>/dev/null; \
	    then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then echo "== Python $$version: not found, left out"; continue; fi; \
	  echo "== Python $$version"; \
	  $(MAKE) --no-print-directory test PYTHON="$$found" VENV=.venv-$$version; \
	done

check: $(READY)
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy"
	"$(BIN)/lint-imports"

bench: $(READY)
	@"$(BIN)/python" -m tests.bench $(ARGS)

bench-growth: $(READY)
	@"$(BIN)/python" -m tests.bench.growth $(ARGS)

bench-peers: $(PEERS)/.ready
	@"$(PEERS)/bin/python" -m tests.bench.peers $(ARGS)

$(PEERS)/.ready: pyproject.toml tests/bench/peers/requirements.txt
	@echo "setting up $(PEERS), with what is compared ..."
	@"$(PYTHON)" -m venv --clear "$(PEERS)"
	@"$(PEERS)/bin/python" -m pip install -qq -e . -r tests/bench/peers/requirements.txt
	@touch $@

torture: $(READY)
	@"$(BIN)/python" -m tests.reliability $(ARGS)

clean:
	rm -rf .venv .venv-3.* .venv-peers .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist build *.egg-info
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
