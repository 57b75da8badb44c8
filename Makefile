# Every target works on a fresh clone: it makes the environment it needs in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python
SOURCES := $(shell find rust python/mllm_selector -name '*.rs' -o -name 'Cargo.toml') Cargo.toml Cargo.lock

# What `cargo fuzz` sets, without the sanitizers that need a nightly compiler.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= ingest pool
FUZZ_HOST = $(shell rustc -vV | sed -n 's/^host: //p')
FUZZ_FLAGS := --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
	-Cllvm-args=-sanitizer-coverage-trace-compares

.DEFAULT_GOAL := help
.PHONY: help demo test test-lowest test-faults lint stubs audit format docs fuzz bench wheel check-wheel check-sdist develop clean

help:  ## Show the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/built  ## Run the whole method on a shipped sample and show where the report is
	$(BIN)/mllm-selector demo --run-dir demo-run

test: $(VENV)/built  ## Run all tests, Rust and Python
	cargo test -p mllm-selector-core --locked --release --quiet
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

test-lowest: $(VENV)/installed  ## Run the tests in Python with the lowest versions that pyproject.toml allows
	$(BIN)/uv venv --quiet --seed --clear --python $(PYTHON) build/lowest
	$(BIN)/uv pip install --quiet --python build/lowest/bin/python --resolution lowest-direct --group dev --editable '.[cpu,train]'
	build/lowest/bin/python -m pytest -n auto --maxprocesses 8 --dist loadfile

test-faults: $(VENV)/built  ## Kills, full disks, damage: the long form, which writes docs/reliability.md
	$(BIN)/python tests/faults/run.py

lint: $(VENV)/built audit  ## Check format, lints and types
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	cargo metadata --manifest-path fuzz/Cargo.toml --locked --format-version 1 >/dev/null  # its lock is up to date
	cargo clippy --workspace --all-targets --locked -- -D warnings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

stubs: $(VENV)/built  ## Compare the type stubs of the Rust module with the module
	$(BIN)/python -m mypy.stubtest mllm_selector._internal --concise

# Neither tool is needed to work on this, and both need the network for what is known to be vulnerable.
audit:  ## Check licences and known vulnerabilities of dependencies, as far as tools and network allow
	@if ! cargo deny --version >/dev/null 2>&1; then echo "audit: cargo-deny is not installed, crates are not checked"; \
	elif ! cargo deny fetch db >/dev/null 2>&1; then \
	  echo "audit: no network, crates are checked without advisories"; cargo deny --locked --offline check licenses bans sources; \
	else cargo deny --locked check; fi
	@if ! $(BIN)/pip-audit --version >/dev/null 2>&1; then echo "audit: pip-audit is not installed, packages are not checked"; \
	else $(BIN)/pip-audit --local --skip-editable --progress-spinner off; fi

format:  ## Format the sources
	cargo fmt --all
	cargo fmt --manifest-path fuzz/Cargo.toml
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

docs: $(VENV)/built  ## Build the documentation into build/docs; any warning is an error
	$(UV) --group docs
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -b html docs build/docs
	@echo "build/docs/index.html"

fuzz:  ## Fuzz ingest and pool reading, FUZZ_SECONDS each; needs a C++ compiler
	cd fuzz && RUSTFLAGS="$(FUZZ_FLAGS)" cargo build --release --locked --target $(FUZZ_HOST)
	set -e; for target in $(FUZZ_TARGETS); do \
	  mkdir -p fuzz/corpus/$$target fuzz/findings; \
	  fuzz/target/$(FUZZ_HOST)/release/$$target -max_total_time=$(FUZZ_SECONDS) -max_len=8192 -timeout=10 \
	    -rss_limit_mb=512 -dict=fuzz/$$target.dict -artifact_prefix=fuzz/findings/$$target- -print_final_stats=1 \
	    fuzz/corpus/$$target rust/core/tests/hostile/$$target; \
	done

bench: $(VENV)/built  ## Time the kernels, and compare selection and pools with what users run today; see benches/README.md
	cargo bench -p mllm-selector-core --locked --bench kernels
	$(UV) --group bench
	$(BIN)/python benches/selection/run.py
	$(BIN)/python benches/pools/run.py

wheel: $(VENV)/built  ## Build the wheel into dist/
	rm -f dist/*.whl
	$(BIN)/maturin build --release --locked --out dist

check-wheel: wheel  ## Check that the wheel is under 10 MB, and run the demo from it in a fresh environment
	test "$$(cat dist/*.whl | wc -c)" -lt 10000000
	rm -rf build/wheel && $(PYTHON) -m venv build/wheel/venv
	$(BIN)/uv pip install --quiet --python build/wheel/venv/bin/python "$$(ls dist/*.whl)[cpu,train]"
	cd build/wheel && venv/bin/mllm-selector demo --run-dir demo-run
	grep -q "Selection report" build/wheel/demo-run/report.html

check-sdist: $(VENV)/built  ## Build a wheel from the sdist without a network, from vendored crates
	rm -rf build/sdist && mkdir -p build/sdist/.cargo
	$(BIN)/maturin sdist --out build/sdist
	tar -xzf build/sdist/*.tar.gz --strip-components 1 -C build/sdist
	cd build/sdist && cargo vendor --locked > .cargo/config.toml
	cd build/sdist && CARGO_NET_OFFLINE=true ../../$(BIN)/maturin build --release --locked --offline --out wheels
	ls -l build/sdist/wheels/*.whl

develop: $(VENV)/built  ## Make .venv with the package built in release mode, and all extras

clean:  ## Remove what the targets made
	rm -rf $(VENV) target dist demo-run fuzz/target fuzz/corpus python/mllm_selector/_internal*.so

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(UV) --group dev
	touch $@

$(VENV)/built: $(VENV)/installed $(SOURCES)
	$(UV) --editable '.[cpu,train]'
	touch $@
