# Everything starts from a bare Linux machine with Python 3 (any), Python 3.12 and a C++20 compiler.
# All that is installed or made goes into .venv, .cache and build.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Every SGLang process imports 6600 modules; without cached bytecode that takes twice as long.
unexport PYTHONDONTWRITEBYTECODE

UV := .cache/bootstrap/bin/uv
# The first Python 3.12 that runs, pyenv's included (its python3.12 on the PATH may be a stub); else uv fetches one.
PYTHON312 := $(shell for python in python3.12 python3 $$HOME/.pyenv/versions/3.12*/bin/python3.12; do \
  $$python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null && \
  $$python -c 'import sys; print(sys.executable)' && exit; done; echo 3.12)
PYTHON := .venv/bin/python
EXTENSION_SOURCES := pyproject.toml CMakeLists.txt $(shell find cpp -type f 2>/dev/null)

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: quickstart
quickstart: env ## serve a small real model with S-HPLB and ask it a long question
	$(PYTHON) -W ignore -m shplb quickstart

.PHONY: test
test: env ## run all tests
	$(PYTHON) -m pytest tests -n 2 --dist loadfile --no-loadscope-reorder --durations 30

.PHONY: test-quick
test-quick: env ## run the tests that start no server
	$(PYTHON) -m pytest tests -n 2 --dist loadfile --no-loadscope-reorder -m "not server"

.PHONY: lint
lint: env ## ruff, mypy, clang-format
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	find cpp tests/cpp -name '*.h' -o -name '*.cc' | xargs .venv/bin/clang-format --dry-run --Werror

.PHONY: env
env: .venv/.patched ## create .venv: pinned dependencies, the C++ extension, the SGLang patch

.PHONY: lock
lock: $(UV) ## resolve requirements.lock again from pyproject.toml
	$(UV) pip compile -q pyproject.toml --extra sglang --extra quickstart --group dev --python-version 3.12 \
	  --no-emit-index-url --no-header --no-annotate -o requirements.lock

.PHONY: clean
clean: ## remove what the build made, keep .venv and downloads
	rm -rf build .cache/quickstart

$(UV):
	@echo "== creating the environment: installing uv"
	python3 -m venv .cache/bootstrap
	.cache/bootstrap/bin/python -m pip install -q uv==0.13.9

.venv/.locked: requirements.lock | $(UV)
	@echo "== installing pinned dependencies into .venv (11 GB with SGLang and CUDA; minutes, once)"
	test -x $(PYTHON) || $(UV) venv -q --python $(PYTHON312) .venv
	$(UV) pip install -q --python $(PYTHON) -r requirements.lock
	touch $@

.venv/.built: .venv/.locked $(EXTENSION_SOURCES)
	@echo "== building the C++ extension"
	PATH="$(CURDIR)/.venv/bin:$$PATH" $(UV) pip install -q --python $(PYTHON) --no-build-isolation --no-deps --reinstall-package shplb -e .
	touch $@

.venv/.patched: .venv/.built $(wildcard patches/*)
	@echo "== patching SGLang"
	$(PYTHON) -m shplb patch apply
	touch $@
