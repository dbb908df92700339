# Nacre. `make` lists what there is; the two that matter are `make demo` and `make test`.
# Every target installs what it needs first, which takes no time when it is there.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help deps build demo test lint types c-test unit integration conformance fuzz guest-kernel images registry bench install uninstall clean

BIN := .venv/bin
NEED := scripts/install-dependencies
PREFIX ?= /usr/local
PYTEST_ARGS ?=

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps: ## install what is missing: distribution packages and the Python environment .venv
	@$(NEED) run build python

build: deps ## compile the C program and the Python byte code; afterwards .venv/bin/nacre works
	@$(MAKE) -s --no-print-directory -C stem
	@$(BIN)/python -m compileall -q src
	@scripts/write-launcher $(CURDIR)/.venv $(CURDIR)/src

demo: ## pull a real image from a real registry and run it at both isolation levels
	@$(NEED) run build python test
	@$(MAKE) -s --no-print-directory -C stem
	@$(BIN)/python -m compileall -q src
	@scripts/write-launcher $(CURDIR)/.venv $(CURDIR)/src
	@scripts/demo

test: ## everything: lint, types, C tests, unit and integration tests
	@$(NEED) run build python test kernel
	@scripts/test

lint: deps ## ruff and mypy --strict
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

c-test: build ## the tests of the C program, under ASan and UBSan
	@$(MAKE) --no-print-directory -C stem test

unit: build ## unit tests: no root, no network, seconds (PYTEST_ARGS=...)
	@$(BIN)/pytest tests/unit $(PYTEST_ARGS)

integration: ## integration tests at every level this host has; needs root (PYTEST_ARGS=...)
	@$(NEED) run build python test
	@$(MAKE) -s --no-print-directory -C stem
	@$(BIN)/python scripts/test-images >/dev/null
	@$(BIN)/pytest tests/integration $(PYTEST_ARGS)

conformance: ## nacre-oci against the validation suite of runtime-tools (needs Go) and our own, beside runc; needs root
	@$(NEED) run build python test
	@$(MAKE) -s --no-print-directory -C stem
	@$(BIN)/python scripts/test-images >/dev/null
	@$(BIN)/pytest tests/conformance $(PYTEST_ARGS)
	@$(BIN)/pytest tests/integration/test_oci_engines.py $(PYTEST_ARGS)

fuzz: ## fuzz the C program for FUZZ_SECONDS (60) with libFuzzer
	@$(NEED) run build python fuzz
	@$(MAKE) --no-print-directory -C stem fuzz SECONDS=$${FUZZ_SECONDS:-60}

guest-kernel: ## build the minimal guest kernel (a few minutes, once; cached by content)
	@$(NEED) kernel
	@guest/build-kernel

images: ## make the test images in the cache
	@$(NEED) test python
	@$(BIN)/python scripts/test-images

registry: images ## serve the test images on loopback under their Docker Hub names, until Ctrl-C
	@$(BIN)/python scripts/registry

bench: ## measure against podman and bare QEMU; writes docs/benchmarks.md
	@$(NEED) run build python test kernel bench
	@$(MAKE) -s --no-print-directory -C stem
	@$(BIN)/python -m compileall -q src
	@scripts/write-launcher $(CURDIR)/.venv $(CURDIR)/src
	@guest/build-kernel >/dev/null
	@$(BIN)/python bench/run --write docs/benchmarks.md

install: deps ## put nacre on the PATH for everybody: PREFIX (/usr/local)
	@scripts/install "$(PREFIX)"

uninstall: ## take it away again; images and containers in /var/lib/nacre stay
	@scripts/install --remove "$(PREFIX)"

clean: ## remove what was built here; the caches outside the checkout stay
	rm -rf .venv build dist src/nacre/bin tests/guestprog/build .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
	$(MAKE) -s --no-print-directory -C stem clean
