# Everything here does its own set-up first: `make demo` and `make test` are all a newcomer runs.
.DEFAULT_GOAL := help
.PHONY: help setup setup-vm demo test test-vm test-all fresh-start lint fmt types unit system bench lock clean
BIN := .venv/bin

help: ## this list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: ## packages, two system files and .venv; does nothing where all is there
	@tools/setup

demo: setup ## a three-node cluster is measured; prints a summary and the path of its report
	@tools/demo

test: setup ## lint, types, unit and system tests on this machine
	@tools/test

setup-vm: setup ## what the VM lane needs, in build/vm: a stock Debian kernel, QEMU, virtme-ng
	@tools/setup-vm

test-vm: setup-vm ## the tests that need a stock kernel's features, in a VM; K=EXPRESSION chooses some
	@tools/test-vm $(if $(K),-k '$(K)')

fresh-start: ## the two commands of the README on a freshly made Debian in a folder; SUITE=trixie for Debian 13
	@tools/fresh-start $(SUITE)

test-all: export TESTBED_NIGHTLY = 1
test-all: test test-vm ## both lanes, whole, with the tests marked nightly: scenarios and campaigns as they are run

lint: setup ## ruff: rules and format
	@tools/test lint

types: setup ## mypy --strict
	@tools/test types

unit: setup ## the tests that need no root and no kernel
	@tools/test unit

system: setup ## the tests in real namespaces
	@tools/test system

fmt: setup ## format the code and mend what ruff can mend
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

bench: setup ## the benchmarks, each with its figure
	@tools/bench

lock: setup ## resolve the dependencies of pyproject.toml anew into requirements.lock
	@tools/lock

clean: ## remove what set-up, tests and runs made in this folder (system packages and files stay)
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find results -mindepth 1 ! -name README.md -delete
