# make repro    build every result        make test    run the tests, and with SLOW=1 the slow ones too
# Both make their own environment in .venv. TORCH is handed to pip before anything else is installed; without it, pip
# picks the newest torch with CUDA. For a smaller, CPU-only install see README.md.
TORCH ?=
PYTHON ?= python3
BIN := .venv/bin
# A core that has done its tests takes some of another's; torch would use all cores in each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

.PHONY: repro test lint clean

repro: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro
	@echo; cat results/table.md

test: .venv/installed lint
	$(PYTEST) $(if $(SLOW),,-m "not slow")

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(if $(TORCH),$(BIN)/python -m pip install $(TORCH))
	$(BIN)/python -m pip install -e '.[test]'
	touch $@

clean:
	rm -rf .venv .s4spipe
