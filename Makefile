# `make demo` and `make test` need Python 3.11 and pip, nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FILE ?= examples/chat.py
PORT ?= 8000
MINUTES ?= 30

.PHONY: demo test tests-ray tests-served tests-in-process soak lint types benchmark install install-dev lock clean

demo: install  ## Serve the chat on 127.0.0.1:8000, until Ctrl-C.
	@$(BIN)/rayobjects serve $(FILE) --port $(PORT)

test: install-dev lint  ## Linter, types and all tests, two of their three parts at a time.
	@$(MAKE) --no-print-directory --jobs=2 tests-ray tests-in-process tests-served

tests-ray: install-dev  ## Objects on a Ray cluster.
	$(BIN)/python -m pytest -m cluster tests/ray

tests-served: install-dev  ## Gateway, command line and examples, each on Ray.
	$(BIN)/python -m pytest -m cluster --ignore=tests/ray

tests-in-process: install-dev  ## Types, and all tests that need no Ray.
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not cluster"

soak: install-dev  ## Random runs and kills for MINUTES, or until something fails.
	$(BIN)/python tests/guarantees/soak.py --minutes $(MINUTES) $(ARGS)

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-dev
	$(BIN)/mypy

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.lock pyproject.toml | $(BIN)/python
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

$(VENV)/.installed-dev: requirements-dev.lock $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.lock
	@touch $@

lock:  ## Write the lock files anew from pyproject.toml; needs uv.
	uv pip compile --quiet --universal --no-header --no-annotate --no-emit-index-url \
	  --no-emit-find-links --python-version 3.11 pyproject.toml -o requirements.lock
	uv pip compile --quiet --universal --no-header --no-annotate --no-emit-index-url \
	  --no-emit-find-links --python-version 3.11 --extra dev pyproject.toml -o requirements-dev.lock

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

benchmark: install  ## Calls of durable objects beside plain Ray actors; see docs/benchmarks.md.
	$(BIN)/python -m benchmarks.calls $(ARGS)
