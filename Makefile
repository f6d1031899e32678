# `make run` and `make test` are all one needs; each installs what it wants into .venv, once.
VENV ?= .venv
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do "$$p" -c '$(FITS)' 2>/dev/null && { echo "$$p"; break; }; done)
PROMPT ?= 12+7=
BENCHES := $(filter-out bench/common.py,$(sort $(wildcard bench/*.py)))

# The prompt reaches the shell as an environment variable, unexpanded: quotes, spaces and $ survive.
override PROMPT := $(value PROMPT)
export PROMPT

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

# Two processes of tests: one begins with those that start engines, one with the rest; see tests/conftest.py.
TWO := --numprocesses 2 --dist loadgroup

# An engine has a dozen processes that import the same modules: without bytecode each of them compiles all again.
unexport PYTHONDONTWRITEBYTECODE

GPU_OUT := bench/results/$(shell date -u +%F)-gpu.jsonl

.PHONY: run test library unit clients fmt lint docs bench gpu models install install-tests clean distclean

run: $(VENV)/.installed
	@$(BIN)/pieray run text-completion -- "--prompt=$$PROMPT"

test: $(VENV)/.installed-tests
	$(BIN)/python -m pytest $(TWO) -m "not library"

# the inferlets that come with pieray: each method by what defines it, each README as it is typed
library: $(VENV)/.installed-tests
	$(BIN)/python -m pytest tests/library

unit: $(VENV)/.installed-tests
	$(BIN)/python -m pytest $(TWO) tests/unit -m "not slow"

# clients of OpenAI's and vLLM's servers (LangChain, LlamaIndex, DSPy, litellm, lm-eval, ...) against this one, in an
# environment of their own, of a gigabyte: what they need does not fit together with what pieray needs
clients: $(VENV)/.installed-tests build/clients/.installed
	$(BIN)/python -m pytest -rs tests/clients

build/clients/.installed: tests/clients/requirements.txt
	@test -x build/clients/bin/python || $(BIN)/python -m venv build/clients
	@echo "installing the clients"
	@build/clients/bin/python -m pip --disable-pip-version-check install --quiet --requirement $<
	@touch $@

# lays out the code, and puts imports in order
fmt: $(VENV)/.installed-tests
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

lint: $(VENV)/.installed-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHON=$(BIN)/python tools/typecheck

# the documentation as a site, in build/site; fails on a link that leads nowhere
docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.installed
	@for script in $(BENCHES); do echo "$$script"; $(BIN)/python "$$script" || exit 1; done

# what only a GPU can tell; without one it says so
gpu: $(VENV)/.installed-tests
	PYTHONPATH=tests/kernels $(BIN)/python tools/gpu_check.py --out $(GPU_OUT)

# which models can be served, compared with transformers one by one: docs/models.md
models: $(VENV)/.installed-tests
	PYTHONPATH=tests/unit/models:tests/support $(BIN)/python tools/model_table.py

install: $(VENV)/.installed

install-tests: $(VENV)/.installed-tests

# torch alone first: pinned, so that nothing that depends on it brings another one
$(VENV)/.torch: constraints.txt
	@test -n "$(PYTHON)" || { echo "pieray needs Python 3.11 or 3.12; give it as PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || { echo "making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing torch"
	@$(PIP) torch
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	@echo "installing pieray"
	@$(PIP) --editable '.[serve]'
	@touch $@

$(VENV)/.installed-tests: $(VENV)/.installed
	@echo "installing what tests need"
	@$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.torch pyproject.toml
	@echo "installing what the documentation needs"
	@$(PIP) --editable '.[docs]'
	@touch $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
