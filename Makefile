# make repro    build every result        make test    run the tests, and with SLOW=1 the slow ones too
# make sweep    queue an experiment for each value of a parameter, and run them      make show    compare experiments
# Both make their own environment in .venv. TORCH is handed to pip before anything else is installed; without it, pip
# picks the newest torch with CUDA. For a smaller, CPU-only install see README.md.
TORCH ?=
PYTHON ?= python3
BIN := .venv/bin
# A core that has done its tests takes some of another's; torch would use all cores in each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

# For sweeps (docs/sweeping.md): the parameter and its values, and how many experiments run at a time.
OVER ?=
WORKERS ?= 1

.PHONY: repro sweep show test lint clean

repro: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro
	@echo; cat results/table.md

sweep: .venv/installed
	$(if $(OVER),,$(error name a parameter and its values, as in: make sweep OVER="s4s.radius=0.01,0.02"))
	PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro teacher_pairs reference real
	PATH="$(CURDIR)/$(BIN):$$PATH" dvc exp run --queue -S '$(OVER)'
	PATH="$(CURDIR)/$(BIN):$$PATH" dvc queue start -j $(WORKERS)
	@while $(BIN)/dvc queue status | grep -qE "Queued|Running"; do sleep 5; done
	@$(MAKE) show

# The columns that a terminal has room for: what was set otherwise, and the FIDs that differ.
show: .venv/installed
	@$(BIN)/dvc exp show --only-changed --no-pager --drop 'gap|/|evaluations|solvers|Created|State|Executor'

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
