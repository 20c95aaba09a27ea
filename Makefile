# Every target does whatever set-up is missing first (scripts/setup.sh).
SHELL := /bin/bash
.DEFAULT_GOAL := help
PREFIX ?= /usr/local
export PREFIX DESTDIR

.PHONY: help
help: ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Install missing system packages (as root), or name them
	scripts/setup.sh

.PHONY: build
build: ## Build the tessera binary and print its path
	@scripts/build.sh

.PHONY: demo
demo: ## See a pool deduplicate, be killed, lose a disk and give everything back
	@scripts/demo.sh

.PHONY: install
install: ## Install binary, manual pages, completions and units (PREFIX=/usr/local, DESTDIR)
	@scripts/install.sh

.PHONY: uninstall
uninstall: ## Remove what install has installed
	@scripts/install.sh --remove

.PHONY: test
test: ## Run all tests
	scripts/test.sh

.PHONY: lint
lint: ## Check formatting, clippy and documentation
	scripts/lint.sh

.PHONY: bench
bench: ## Compare with qemu and nbdkit under fio, over NBD and mounted (BENCH="--quick" for a short run)
	@scripts/bench.sh $(BENCH)

.PHONY: microbench
microbench: ## Measure hashing, parity, index and codecs on their own
	scripts/setup.sh build && . scripts/env.sh && cargo bench --locked --workspace --benches

.PHONY: image-test
image-test: ## Build the container image and use it (needs podman or docker)
	scripts/container-test.sh

.PHONY: vm-test
vm-test: ## Boot virtual machines that use exports
	scripts/vm-test.sh
	scripts/vm-attach-test.sh

.PHONY: soak
soak: ## Run the simulations for long (SEEDS=500 seeds of each level, then every sequence of three)
	scripts/soak.sh $(SEEDS)

.PHONY: sabotage
sabotage: ## Break each rule in turn and see that the tests notice
	scripts/sabotage.sh

.PHONY: fuzz
fuzz: ## Fuzz every target (FUZZ=600 seconds each)
	scripts/fuzz.sh $(FUZZ)
