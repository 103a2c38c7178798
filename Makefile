# The front door. Every target installs what it lacks, or says exactly what to install.
.DEFAULT_GOAL := help
.PHONY: help demo dev test check bench chaos sqlx setup

help: ## Show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-8s %s\n", $$1, $$2 }'

demo: setup ## Build, then run the main job on a private PostgreSQL, from nothing to finished jobs
	cargo build --locked -p tollgate
	./target/debug/tollgate demo

dev: setup ## Build, then run a whole Tollgate until Ctrl-C
	cargo build --locked -p tollgate
	./target/debug/tollgate dev

test: setup ## Run every test, on a private PostgreSQL
	scripts/test

check: setup ## Format, lints, dependencies, layers, SQL against the schema
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	scripts/deny
	cargo test --locked -p tollgate --test it layers
	scripts/sqlx --check

bench: setup ## Measure Tollgate beside its peers (an hour); prints tables with the machine's facts
	scripts/bench

chaos: setup ## Kill workers at random, and PostgreSQL twice, while 20,000 jobs run: about 10 minutes
	CHAOS_JOBS=$${CHAOS_JOBS:-20000} CHAOS_SECONDS=$${CHAOS_SECONDS:-590} \
		cargo test --locked -p tollgate --test it worker_chaos -- --nocapture

sqlx: setup ## Ask a private PostgreSQL about every statement, after a change of SQL or schema
	scripts/sqlx

setup:
	@scripts/setup
