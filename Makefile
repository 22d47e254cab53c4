# Every task of the project, one line each: `make help`.
PYTHON := .venv/bin/python
WIRE := etcd_server/transport/_wire.abi3.so
.DEFAULT_GOAL := help

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install and build all that is needed, into .venv (runs again at no cost)
	@scripts/setup.sh

demo: setup ## one server, one agent, a real nginx: everything shown end to end, in a minute
	@$(PYTHON) -m scripts.demo

test: setup check ## all checks and tests
	@scripts/test.sh

check: setup ## style, types and floors
	@$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check . && $(PYTHON) -m mypy && .venv/bin/lint-imports

sim: setup ## simulate whole clusters: SEED=n, or SEEDS=a..b
	@$(PYTHON) -m tests.sim.run $(or $(SEED),$(SEEDS),1..40) $(ARGS)

bench: setup ## compare with etcd on this machine: rates, latencies, CPU, memory
	@$(PYTHON) -m benchmarks.bench $(ARGS)

bench-agent: setup ## measure the agent: from a put to file and reload, idle CPU, a thousand watchers
	@$(PYTHON) -m benchmarks.agent $(ARGS)

rpm: ## build the RPMs, and a signed repository of them: build/rpm/repository
	@packaging/rpm/build.sh

test-packages: setup rpm ## install, run, upgrade and remove the RPMs on machines that are booted for it (root)
	@TEST_PACKAGES=1 $(PYTHON) -m pytest tests/packages

proto: setup ## generate the message classes from etcd_server/api/proto/*.proto
	@$(PYTHON) -m tools.generate_messages

clean: ## remove what was built
	rm -rf .venv build wire/target benchmarks/loadgen/target $(WIRE)

.PHONY: help setup demo test check sim bench bench-agent rpm test-packages proto clean
