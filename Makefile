# The table of commands: `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help demo test chaos memory fuzz bench bench-quick bench-peers lint fmt doc broker broker-down compose-check clean

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
# Tests kill the program at named steps; lint and doc share what was built for them.
FEATURES := --features failpoints
CARGO := PATH="$$PATH:$${CARGO_HOME:-$$HOME/.cargo}/bin" cargo

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Watch it learn: generated plant sensors with injected faults, no broker, no files
	@scripts/setup build
	@$(CARGO) run --release --locked -- demo

test: ## Run every test, against a real Kafka broker and schema registry brought up for it
	@scripts/test

chaos: export CHAOS_KILLS ?= 200
chaos: ## Kill it CHAOS_KILLS times (200) or more while records flow, and count what comes out
	@scripts/test --test chaos -- --nocapture

memory: export MEMORY_KEYS ?= 1000000
memory: ## Measure what MEMORY_KEYS (1000000) keys take, a tenth of them in memory, the rest in the store
	@scripts/setup build
	@$(CARGO) test --release --locked $(FEATURES) --test memory keys_beyond -- --nocapture

fuzz: ## Search for input that breaks what reads it, FUZZ_SECONDS (10) for each kind
	@scripts/fuzz

bench: ## Run the benchmarks
	@scripts/setup build
	@$(CARGO) bench --locked

bench-quick: ## Look in a few minutes whether something became slower
	@scripts/setup build
	@PATH="$$PATH:$${CARGO_HOME:-$$HOME/.cargo}/bin" scripts/bench-quick

bench-peers: ## Run the benchmarks beside JAX and candle, and beside Python jobs, on a broker
	@scripts/setup build
	@PATH="$$PATH:$${CARGO_HOME:-$$HOME/.cargo}/bin" scripts/bench-peers

lint: ## Check formatting, lints and, where shellcheck is installed, the scripts
	@scripts/setup build
	@$(CARGO) fmt --check
	@$(CARGO) fmt --check --manifest-path fuzz/Cargo.toml
	@$(CARGO) fmt --check --manifest-path benches/peers/candle/Cargo.toml
	@$(CARGO) clippy --locked $(FEATURES) --all-targets -- -D warnings
	@$(CARGO) clippy --locked -- -D warnings
	@if command -v shellcheck >/dev/null; then \
		shellcheck scripts/setup scripts/kafka scripts/registry scripts/venv scripts/test scripts/compose-check \
			scripts/fuzz fuzz/rustc scripts/soak scripts/flame scripts/bench-program scripts/bench-quick scripts/bench-peers .ci/run; \
	else \
		echo "shellcheck is not installed: scripts not checked"; \
	fi

fmt: ## Format the code
	@$(CARGO) fmt
	@$(CARGO) fmt --manifest-path fuzz/Cargo.toml
	@$(CARGO) fmt --manifest-path benches/peers/candle/Cargo.toml

doc: ## Build the documentation; broken links are errors
	@scripts/setup build
	@RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked $(FEATURES) --no-deps

broker: ## Start test broker and schema registry and keep them: `cargo test` takes what their `env` says
	@scripts/setup test
	@scripts/kafka up
	@scripts/registry up

broker-down: ## Stop test broker and schema registry, and forget their topics and schemas
	@scripts/kafka clean
	@scripts/registry clean

compose-check: ## Validate docker-compose.yml
	@scripts/compose-check

clean: ## Remove everything built, fetched or started here
	@scripts/kafka clean
	@scripts/registry clean
	@$(CARGO) clean
	@rm -rf .kafka .registry .venv
