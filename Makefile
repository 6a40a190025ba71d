# `make` alone lists what there is. Every recipe works on a fresh clone with Rust, make, and Python 3 with pip.

CARGO ?= cargo
PYTHON ?= python3

.DEFAULT_GOAL := help
.PHONY: help demo recipe page binary page-test test lint unit clients docs bench clean-demo

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: page ## Build a real mixture of experts out of a small model and ask it a question
	@CARGO="$(CARGO)" PYTHON="$(PYTHON)" tools/demo

recipe: ## Train the demo's model on real text, then SFT, then DPO: make recipe [MINUTES=150]
	@CARGO="$(CARGO)" PYTHON="$(PYTHON)" MINUTES="$(MINUTES)" tools/recipe

# What lies in web/dist is embedded by the next build of the program; without npm there is a server without the page.
page: ## Build the page that the server hands to browsers
	@if command -v npm >/dev/null; then web/build; else echo "no npm: the server is built without its page" >&2; fi

test: page lint docs page-test unit clients ## Run every check and every test

lint: ## Check the format, and clippy with warnings denied
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

docs: ## Build the documentation with warnings denied, and run its examples
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --document-private-items --quiet
	$(CARGO) test --locked --workspace --doc --quiet

unit: ## Run unit, golden, property, command-line and tidy tests
	PYTHON="$(PYTHON)" tests/fetch_tokenizers
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
		set -x; $(CARGO) nextest run --locked --workspace --no-fail-fast; \
	else \
		set -x; $(CARGO) test --locked --workspace --lib --bins --tests --no-fail-fast; \
	fi

# With a test beside it, dependencies have the features that tests ask for: those of `unit`, so nothing is compiled twice.
binary:
	$(CARGO) build --locked --workspace --bins --test tidy

page-test: page binary ## Run the page in Chromium against the server, with a real small model
	PYTHON="$(PYTHON)" tests/page/run

clients: binary ## Run the official clients of four APIs against the server, with a real small model
	PYTHON="$(PYTHON)" tests/clients/run

bench: ## Measure speed: make bench MODEL=file.gguf [PEERS="--peer NAME=path/to/llama-bench"]
	@test -n "$(MODEL)" || { echo 'make bench: name a model, as in: make bench MODEL=demo/model.gguf' >&2; exit 2; }
	$(CARGO) build --locked --release
	$(PYTHON) bench/compare "$(MODEL)" $(PEERS)

clean-demo: ## Remove what `make demo` made
	rm -rf demo
