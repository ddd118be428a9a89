# Every target does its own set-up. `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help

ENV      := python3 scripts/env.py
VENV     ?= .venv
BIN      := $(VENV)/bin
WORKERS  ?= 2
PART     ?=
ARGS     ?=

.PHONY: help env env-oldest env-peers demo test test-oldest parity lint format acceptance tables clean

help:  ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env:  ## .venv: the newest suitable Python, min_llm and its development tools
	@command -v python3 >/dev/null || { echo "env: no python3 on PATH; install Python 3.11 or newer"; exit 1; }
	@$(ENV) main

env-oldest:  ## .venv-oldest: Python 3.11 with JAX 0.10.2, the oldest supported pair
	@$(ENV) oldest

env-peers:  ## .venv-peers: torch (CPU), transformers, peft, llama.cpp and lm-eval, to compare with
	@$(ENV) peers

demo: env  ## train a small Llama 3 on Shakespeare (one to three minutes on two cores)
	$(BIN)/min-llm train apps/shakespeare/config.yaml $(ARGS)

test: env  ## all tests that need no peer (ARGS="-k rope" narrows them down)
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

test-oldest: env-oldest  ## nearly the same tests on the oldest supported pair
	.venv-oldest/bin/python -m pytest -n $(WORKERS) -m "not peers and not newest" $(ARGS)

parity: env env-peers  ## the tests that compare with other programs (torch, transformers, llama.cpp, lm-eval, npm)
	$(BIN)/python -m pytest -m peers $(ARGS)

lint: env  ## ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: env  ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

acceptance: env  ## the long proofs; PART=name runs one of them, without PART it lists them
	$(BIN)/python -m scripts.acceptance $(PART)

tables: env  ## write the tables of README and docs from the result files
	$(BIN)/python -m scripts.tables

clean:  ## remove the environments and caches (runs/ stays)
	rm -rf .venv .venv-oldest .venv-peers .venv*.lock .venv*.removing build dist
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
