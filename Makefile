# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
COMPILED := build/compiled/built

.PHONY: demo test test-slow test-compiled compiled lint docs bench dist constraints clean

demo: $(READY)  ## verify a shipped list against the bundled lab
	@$(BIN)/engine lab demo

test: $(READY)  ## the suite, under 5 minutes on 2 cores
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(READY)  ## real mail servers, kill rounds; under 30 minutes
	$(BIN)/python -m pytest -m slow

test-compiled: $(COMPILED)  ## the suite on what make compiled made
	PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/build/compiled:$(CURDIR) $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(READY)  ## style, types, import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY)  ## the pages that are made from the code, then the site in build/site
	$(BIN)/python -m pip install --quiet --group docs
	$(BIN)/python docs/made
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

compiled: $(COMPILED)  ## the engine in build/compiled, its hot modules as C by mypyc; takes a C compiler and some minutes

$(COMPILED): $(READY) setup.py $(shell find engine policies -type f ! -name '*.pyc')
	rm -rf build/compiled
	ENGINE_COMPILED=1 $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target build/compiled .
	@touch $@

bench: $(READY)  ## the engine beside its peers, small sizes; under 10 minutes on 2 cores, and once some more to build the peers and to compile
	$(BIN)/python -m pip install --quiet --group bench
	-$(BIN)/python -m bench.peers
	-$(MAKE) compiled
	$(BIN)/python -m bench all --short --json build/bench --plots build/bench

# The same commit gives the same bits: its time stands in both files, modes and order are set, setuptools is pinned.
dist: export SOURCE_DATE_EPOCH ?= $(shell git -c safe.directory='*' log -1 --format=%ct 2>/dev/null || echo 315532800)
dist: export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
dist: $(READY)  ## wheel and sdist, reproducible
	rm -rf dist build/sdist *.egg-info
	umask 022 && $(BIN)/python -m build --sdist --outdir build/sdist
	tar -C build/sdist --no-same-owner -xzf build/sdist/*.tar.gz && rm build/sdist/*.tar.gz
	chmod -R u=rwX,go=rX build/sdist && mkdir dist
	cd build/sdist && name=$$(echo *) && tar --sort=name --mtime=@$$SOURCE_DATE_EPOCH --owner=0 --group=0 \
		--numeric-owner --format=ustar -cf - $$name | gzip -9n > $(CURDIR)/dist/$$name.tar.gz
	umask 022 && $(BIN)/python -m build --wheel --outdir dist build/sdist/*

constraints: $(READY)  ## constraints.txt anew: what is installed, pinned to what is newest
	rm -rf build/pins && $(BIN)/python -m venv build/pins
	build/pins/bin/python -m pip install --quiet --upgrade . setuptools mypy types-PyYAML
	{ echo "# The versions that CI and the image install, and what builds them. Made by make constraints."; \
		build/pins/bin/python -m pip freeze --quiet --all --exclude pip --exclude probe-engine; } > constraints.txt

$(READY): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV) || { echo "The venv module is missing; on Debian: apt-get install python3-venv"; exit 2; }
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable . --group dev
	@touch $@

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
