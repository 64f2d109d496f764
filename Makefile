# make repro    build every result
# make test     check the code and run the tests; with SLOW=1 with coverage, and the slow ones too
# make sweep    queue an experiment for each value of a parameter, and run them
# make show     compare experiments
# Each makes its own environment in .venv. TORCH is handed to pip before anything else is installed; without it, pip
# picks the newest torch with CUDA. For a smaller, CPU-only install see README.md.
TORCH ?=
PYTHON ?= python3
BIN := .venv/bin
# The folder in runs/ that params.yaml names.
MODEL = $(BIN)/python -c "from ruamel.yaml import YAML; print(YAML(typ='safe').load(open('params.yaml'))['model']['name'])"

# For sweeps (docs/guide/sweeping.md): the parameter and its values, and how many experiments run at a time.
OVER ?=
WORKERS ?= 1

.PHONY: repro sweep show test lint clean

repro: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro
	@echo; cat "runs/$$($(MODEL))/report/table.md"

# A worker of the queue may die: DVC's messages to it are files, which it may meet half-written. Then others are started.
sweep: .venv/installed
	$(if $(OVER),,$(error name a parameter and its values, as in: make sweep OVER="learners.s4s.epochs=5,10"))
	PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro teacher_pairs reference real
	PATH="$(CURDIR)/$(BIN):$$PATH" dvc exp run --queue -S '$(OVER)'
	PATH="$(CURDIR)/$(BIN):$$PATH" dvc queue start -j $(WORKERS)
	@idle=0; while status=$$($(BIN)/dvc queue status) && echo "$$status" | grep -qE "Queued|Running"; do \
		case "$$status" in *"0 active, 0 idle"*) idle=$$((idle + 1));; *) idle=0;; esac; \
		if [ $$idle = 3 ]; then PATH="$(CURDIR)/$(BIN):$$PATH" dvc queue start -j $(WORKERS); idle=0; fi; \
		sleep 5; \
	done
	@$(MAKE) show

# The columns that a terminal has room for: what was set otherwise, and the FIDs that differ.
show: .venv/installed
	@$(BIN)/dvc exp show --only-changed --no-pager --drop 'gap|/|Created|State|Executor'

# One thread a process: a core that has done its tests takes some of another's, and torch would use all cores in each.
# The everyday suite alone counts the lines that run, in every process that it starts, by the first cases of each test
# (tests/conftest.py). The slow tests often wait for a process or a queue: one more than there are cores keeps the cores
# busy. Hundreds of stages are started, so that what Python has compiled should be kept.
unexport PYTHONDONTWRITEBYTECODE
test: .venv/installed lint
ifdef SLOW
	$(BIN)/coverage erase
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest -n auto --dist worksteal -m "not slow"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $$(($$(getconf _NPROCESSORS_ONLN) + 1)) --dist worksteal -m slow
else
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"
endif

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(if $(TORCH),$(BIN)/python -m pip install $(TORCH))
	$(BIN)/python -m pip install -e '.[test]'
	touch $@

clean:
	rm -rf .venv .s4spipe .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist htmlcov
