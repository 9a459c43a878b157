# What people and CI run; both use the same commands. `make` lists them.
#
#   PYTHON=python3.12     the Python that .venv is made from
#   PIP_FLAGS=...         further flags for pip install, such as an index of your own
#   DATA=, PORT=, HOST=   for `make serve`
#   ARGS=...              further arguments for the command itself

SHELL := /bin/bash
BIN := .venv/bin
ARGS ?=
export PYTHON PIP_FLAGS
# Only what this folder's .venv holds, whatever else the shell has on its paths.
unexport PYTHONPATH PYTHONHOME

.DEFAULT_GOAL := help
.PHONY: help demo serve test faults fuzz bench-gpu check clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

demo: .venv/installed ## set up, start a server, draw the example request, put the pictures into demo/
	@$(BIN)/python -m safelight demo $(ARGS)

serve: .venv/installed ## set up and serve pinhole in the foreground
	@$(BIN)/python -m safelight serve pinhole $(if $(DATA),--data $(DATA)) $(if $(HOST),--host $(HOST)) $(if $(PORT),--port $(PORT)) $(ARGS)

test: .venv/installed-dev ## set up and run every test, in two processes
	@$(BIN)/python -m pytest -n 2 $(ARGS)

fuzz: .venv/installed-dev ## some thousand made-up requests at a real door: no server errors, no undocumented answers
	@$(BIN)/python -m tests.fuzz.fuzzing $(ARGS)

faults: .venv/installed-dev ## kill, stop, starve a working server at full size; the table goes to docs/promises.md
	@$(BIN)/python -m tests.faults --write docs/promises.md $(ARGS)

bench-gpu: .venv/installed-dev ## step times and serving with Stable Diffusion 2.1's architecture on a GPU
	@$(BIN)/python -m benchmarks.gpu $(ARGS)

check: .venv/installed-dev ## formatting, lint, types, floors of imports, lengths
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python scripts/census.py

clean: ## remove what the other commands made (never a data folder of yours)
	rm -rf .venv demo dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed: pyproject.toml constraints.txt scripts/set_up.sh
	@scripts/set_up.sh "" $@

.venv/installed-dev: pyproject.toml constraints.txt scripts/set_up.sh
	@scripts/set_up.sh "[dev]" $@
	@touch .venv/installed
