# make demo    a fresh environment, the software in it, and the demonstration
# make test    the whole check, set-up included: what CI runs
# make check   the same without set-up, in the environment of PYTHON (default: .venv, else python3)
# make venv    the development environment .venv

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

.PHONY: demo test check venv clean

demo:
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) -e '.[all]'
	$(BIN)/napari-hrsam demo

venv: $(VENV)/.dev

$(VENV)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) -e '.[dev]'
	touch $@

test: venv
	PYTHON=$(BIN)/python scripts/check

check:
	PYTHON=$$([ -x $(BIN)/ruff ] && echo $(BIN)/python || echo $(PYTHON)) scripts/check

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
