# `make demo` and `make test` do all their own set-up; a second call reuses it in seconds.
# python3 will do where it is 3.11.
PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed-from
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test android lint format notebook clean

help:  ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# A digest, not time stamps: a fresh clone's are all alike. The file appears only when the
# installation is whole, so one that was interrupted is done again.
DIGEST := $(shell cat setup.cfg constraints.txt pyproject.toml Makefile 2>/dev/null | cksum)

.PHONY: install
install:
	@if [ "$$(cat $(INSTALLED) 2>/dev/null)" != "$(DIGEST)" ]; then $(MAKE) --no-print-directory venv; fi

.PHONY: venv
venv:
	@command -v $(PYTHON) >/dev/null || { echo "kdtflite needs Python 3.11: expected '$(PYTHON)' on the PATH, found none. Install it, or call make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "kdtflite needs Python 3.11: '$(PYTHON)' is $$($(PYTHON) --version). Call make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Installing into $(VENV) (about a minute, once) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,notebooks]'
	@echo "$(DIGEST)" > $(INSTALLED)

demo: install  ## Distil, quantize, convert, prove and measure on the embedded digits (two minutes)
	@$(BIN)/kdtflite run digits --output runs/demo

test: install lint  ## Everything that checks us: lint, types, layers, tests, notebook, app
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope
	@$(BIN)/python android_demo/build.py --tools || echo "The app's tests were skipped."

# MODEL=student.tflite puts in another model, GOLDEN=golden.json its vectors (otherwise made of
# random inputs), ABIS=arm64-v8a builds for some processors alone.
android: install  ## Build and test the Android app (needs a JDK 17; two minutes)
	@$(BIN)/python android_demo/build.py $(if $(MODEL),--model '$(MODEL)') $(if $(GOLDEN),--golden '$(GOLDEN)') $(if $(ABIS),--abis '$(ABIS)')

lint: install  ## ruff, mypy and the order of the layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: install  ## Format the code and sort imports
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## Remove the environment and everything built
	rm -rf $(VENV) build dist android_demo/build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
