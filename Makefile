# Every target works on a fresh clone: it makes the environment it needs in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python
SOURCES := $(shell find rust python/mllm_selector -name '*.rs' -o -name 'Cargo.toml') Cargo.toml Cargo.lock

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench wheel develop clean

help:  ## Show the targets
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/built  ## Run the whole method on a shipped sample and show where the report is
	$(BIN)/mllm-selector demo --run-dir demo-run

test: $(VENV)/built  ## Run all tests, Rust and Python
	cargo test -p mllm-selector-core --locked --release --quiet
	$(BIN)/python -m pytest

lint: $(VENV)/built  ## Check format, lints and types
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format:  ## Format the sources
	cargo fmt --all
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: $(VENV)/built  ## Compare selection and pools with what users run today; see benches/README.md
	$(UV) --group bench
	$(BIN)/python benches/selection/run.py
	$(BIN)/python benches/pools/run.py

wheel: $(VENV)/built  ## Build the wheel into dist/
	$(BIN)/maturin build --release --locked --out dist

develop: $(VENV)/built  ## Make .venv with the package built in release mode, and all extras

clean:  ## Remove what the targets made
	rm -rf $(VENV) target dist demo-run python/mllm_selector/_internal*.so

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(UV) --group dev
	touch $@

$(VENV)/built: $(VENV)/installed $(SOURCES)
	$(UV) --editable '.[cpu,train]'
	touch $@
