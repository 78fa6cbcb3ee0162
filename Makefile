# Every target makes the virtual environment itself when it is missing. `make` alone prints this help.
PYTHON ?= python3
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PROTOS := $(wildcard proto/benchfleet/v1/*.proto)

# Tests start hundreds of programs: each would compile all it imports anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-faults lint format types proto proto-check docs lock audit bench bench-timing \
  bench-overhead bench-dataplane bench-queries clean

help:  ## print this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt \
	  --editable ".[agent,controller,report]" --group dev
	@touch $@

demo: .venv/.ready  ## the main job on this machine: two agents, Foundry Local, a real model, a comparison
	$(BIN)/benchfleet demo

test: .venv/.ready  ## all tests that need no more than a few minutes, on the real Foundry Local runtime
	$(BIN)/python -m pytest -m "not slow and not live" --numprocesses 2 tests/unit
	$(BIN)/python -m pytest -m "not slow and not live and not timing" --numprocesses 3 --dist loadfile \
	  tests/fuzz tests/integration
	$(BIN)/python -m pytest -m "timing and not slow and not live" tests/integration

test-slow: .venv/.ready  ## what takes longer: whole jobs in every variety, faults, TLS, the demo, reports in Chromium
	$(BIN)/python -m pytest -m "slow and not live" --numprocesses 3 --dist loadfile

test-faults: .venv/.ready  ## each kind of fault at least once with real processes, by a new seed (hundreds: docs/faults.md)
	$(BIN)/python -m pytest tests/faults -m "not live"

lint: .venv/.ready  ## ruff, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: .venv/.ready  ## let ruff format and fix what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: .venv/.ready  ## mypy strict for Linux, Windows and macOS
	$(BIN)/mypy --platform linux & linux=$$!; \
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32 proto agent controller \
	  && $(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin proto agent controller; \
	others=$$?; wait $$linux && exit $$others

proto: .venv/.ready  ## generate Python from the .proto files
	$(BIN)/python -m grpc_tools.protoc -I proto --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
	  --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	  --python_out=proto --grpc_python_out=proto --mypy_out=proto --mypy_grpc_out=proto $(PROTOS)

proto-check: proto  ## the checked-in generated code is what the .proto files say, and they are well-formed
	git diff --exit-code -- proto
	cd proto && ../$(BIN)/buf lint && ../$(BIN)/buf format --diff --exit-code

docs: .venv/.ready  ## rewrite the tables of the documentation that follow from the program
	$(BIN)/python docs/regenerate.py

lock: .venv/.ready  ## choose the versions of constraints.txt anew
	$(PYTHON) -m venv .venv/lock && .venv/lock/bin/python -m pip install --quiet uv
	.venv/lock/bin/uv pip compile --quiet --universal --upgrade --python-version 3.11 --no-header --no-annotate \
	  --no-emit-index-url --extra agent --extra controller --extra report --group dev pyproject.toml -o constraints.txt

audit: .venv/.ready  ## known vulnerabilities of the versions in constraints.txt (asks a public database)
	$(PYTHON) -m venv .venv/audit && .venv/audit/bin/python -m pip install --quiet pip-audit
	.venv/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

bench: bench-timing bench-overhead bench-dataplane bench-queries  ## all of the program's own benchmarks

bench-timing: .venv/.ready  ## how true our time stamps are: budgets, then against peers (docs/timing.md; 1 GB of peers)
	$(BIN)/python benchmarks/timing.py
	$(BIN)/python -m benchmarks.peers --write docs/timing.md

bench-overhead: .venv/.ready  ## what sampling and an agent at rest cost (docs/overhead.md)
	$(BIN)/python -m benchmarks.overhead --write docs/overhead.md

bench-dataplane: .venv/.ready  ## ingest, fleets of up to 1,000 simulated agents, what TLS costs (docs/dataplane.md)
	$(BIN)/python -m benchmarks.dataplane --write docs/dataplane.md

bench-queries: .venv/.ready  ## a comparison over a million requests and a hundred million readings (docs/queries.md)
	PYTHONPATH=tests $(BIN)/python benchmarks/queries.py --write docs/queries.md

clean:  ## remove the virtual environment and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache dist demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
