# make demo    a fresh environment, the software in it, and the demonstration
# make test    the whole check, set-up included: what CI runs
# make check   the same without set-up, in the environment of PYTHON (default: .venv, else python3)
# make test-newest   what needs no torch, on Python 3.12 and 3.13 with the newest of every library
# make test-slow     processes killed and clicks at random, ten times as long as in make check; the
#                    monkey at the panel for half an hour
# make release the packages in dist/, checked
# make docs    the documentation site, in site/
# make venv    the development environment .venv

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

# Read by tests/engine/test_kills.py, test_embed_crash.py and everything/test_auto_processes.py,
# tests/cluster/test_crew.py, tests/storage/test_label_surroundings.py, tests/plugin/panel/test_stress.py
# and test_monkey.py.
KILLS ?= 200
STRESS ?= 200
MONKEY_S ?= 1800

.PHONY: demo docs release test check test-newest test-slow venv clean

demo:
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) -e '.[all]'
	$(BIN)/napari-hrsam demo

venv: $(VENV)/.dev

$(VENV)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) -e '.[dev]'
	touch $@

docs: venv
	$(PIP) -e '.[docs]'
	$(BIN)/mkdocs build --clean

release:
	$(PYTHON) -m venv --clear .venv-release
	.venv-release/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt \
		build check-wheel-contents hatchling twine
	rm -rf dist
	.venv-release/bin/python -m build --no-isolation
	.venv-release/bin/twine check --strict dist/*
	.venv-release/bin/check-wheel-contents dist/*.whl

test: venv
	PYTHON=$(BIN)/python scripts/check

check:
	PYTHON=$$([ -x $(BIN)/ruff ] && echo $(BIN)/python || echo $(PYTHON)) scripts/check

test-newest:
	scripts/test_newest

test-slow: venv
	scripts/display
	NAPARI_HRSAM_KILLS=$(KILLS) NAPARI_HRSAM_STRESS_ROUNDS=$(STRESS) \
		NAPARI_HRSAM_MONKEY_S=$(MONKEY_S) $(BIN)/python -m pytest -rA \
		-k 'kill or stress or monkey' tests/cluster tests/engine tests/plugin tests/storage

clean:
	rm -rf $(VENV) .venv-newest-* .venv-release build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
