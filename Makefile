# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow lint docs bench dist clean

demo: $(READY)  ## verify a shipped list against the bundled lab
	@$(BIN)/engine lab demo

test: $(READY)  ## the suite, under 5 minutes on 2 cores
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(READY)  ## real mail servers, kill rounds; under 30 minutes
	$(BIN)/python -m pytest -m slow

lint: $(READY)  ## style, types, import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY)  ## the pages that are made from the code, then the site in build/site
	$(BIN)/python -m pip install --quiet --group docs
	$(BIN)/python docs/made
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(READY)  ## the engine measured on this machine, small sizes; under 10 minutes on 2 cores
	$(BIN)/python -m pip install --quiet --group bench
	$(BIN)/python -m bench all --short

dist: $(READY)  ## wheel and sdist
	rm -rf dist && $(BIN)/python -m build

$(READY): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV) || { echo "The venv module is missing; on Debian: apt-get install python3-venv"; exit 2; }
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable . --group dev
	@touch $@

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
