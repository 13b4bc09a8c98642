# The whole house, on a machine that has Python 3.11 or newer and nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
export PATH := $(BIN):$(PATH)

.PHONY: install demo down test lint types clean

install: $(VENV)/.installed

define pip-install
	@$(PYTHON) -c 'import sys; sys.exit("Palimpsest needs Python 3.11 or newer (make PYTHON=python3.12)" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable $(1)
	@touch $(VENV)/.installed $@
endef

$(VENV)/.installed: pyproject.toml constraints.txt
	$(call pip-install,.)

$(VENV)/.installed-test: pyproject.toml constraints.txt
	$(call pip-install,'.[test]')

demo: install
	@$(BIN)/python infra/local/demo.py

down: install
	@$(BIN)/palimpsest down

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test
	$(BIN)/mypy

# Two processes, each with its share of the tests; tests/conftest.py says which stay together.
test: lint types
	$(BIN)/pytest --numprocesses 2 --dist loadgroup --no-loadscope-reorder

clean:
	rm -rf $(VENV) demo-output build *.egg-info
