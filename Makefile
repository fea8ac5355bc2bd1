# Every target makes the virtual environment it needs; a second call installs nothing.
#
#   make demo            train five phantom sites, search across them, write runs/demo/
#   make network-demo    three sites and a coordinator in processes of their own; needs nginx
#   make test            the test suite but for what takes long
#   make test-slow       the rest of it: whole networks, Flower's simulation, killed processes
#   make coverage        the same with the coverage floor
#   make test-protocol   the long profile of the secure sum's generated runs
#   make test-hostile    the long profile of hostile messages
#   make test-kills      the long profile of killed processes; needs nginx
#   make lint            format, lint, types, import contracts, wheel contents
#   make bench-quality   the retrieval figures of docs/benchmarks.md
#   make bench-secagg    secure aggregation beside Flower's and beside none
#   make bench-network   a secure round over Flower's deployment engine beside Flower's own
#   make bench-sim       rounds of the simulator beside Flower on Ray and pfl
#   make study STUDY=... a study of simulations/studies: its sweeps, tables and pictures
#   make bench-margins   what each part of the margin schedule does to retrieval
#   make bench-privacy   what privacy costs, what leaks, and how fast private steps are
#   make bench-search    the index beside bare FAISS
#   make bench-router    queries over the router, with ten sites
#   make proto           compile the schemas of queries and of the release service
#   make bench-demo      seconds and peak memory of the demo
#   make bench-docs      write the tables of README.md and docs/benchmarks.md from build/bench/*.csv

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DEMO   := runs/demo

# The folder of the real data sets; tests and benchmarks that need an absent set say so and skip.
export FEDHASH_DATA ?= $(abspath ../shared/data)

# Nothing reaches the internet at run time.
export FLWR_TELEMETRY_ENABLED = 0
export FLWR_DISABLE_UPDATE_CHECK = 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION = 1
export RAY_USAGE_STATS_ENABLED = 0

.PHONY: help install demo network-demo test coverage test-slow test-protocol test-hostile test-kills lint format proto schemas bench-quality bench-sim study bench-margins bench-search bench-secagg bench-network bench-privacy bench-router bench-demo bench-docs clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   make/make/p' Makefile

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "fedhash needs Python 3.11 to 3.13; name one with 'make PYTHON=python3.12 ...'" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "python3 cannot make virtual environments: install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[sim,dev]'
	@touch $@

install: $(VENV)/.installed

demo: install
	$(BIN)/fedhash-sim run configs/study/demo.yaml --workers 2 --out $(DEMO) --replace
	$(BIN)/fedhash-sim search $(DEMO) --target image --report \
	  "The cardiac silhouette is enlarged. Small left pleural effusion. No pneumothorax."
	$(BIN)/fedhash-sim search $(DEMO) --target report --example image

network-demo: install
	$(BIN)/fedhash-sim network-demo

test: install
	$(BIN)/pytest -n auto --dist loadgroup -m 'not slow'

test-slow: install
	$(BIN)/pytest -n auto --dist loadgroup -m slow

# the tracer makes the suite a third slower, so the gate goes without it
coverage: install
	$(BIN)/pytest -n auto --dist loadgroup --cov --cov-report=term --cov-fail-under=90

# ten thousand generated runs of the protocol; about a quarter of an hour
test-protocol: install
	FEDHASH_PROTOCOL_RUNS=10000 $(BIN)/pytest -n auto -o addopts= -o timeout=0 tests/unit/test_secagg_protocol.py

# a hundred thousand hostile messages to the daemon's sockets, the router's port and its core
HOSTILE := tests/unit/test_site_daemon.py tests/unit/test_search_routing.py tests/contract/test_query_router.py
test-hostile: install
	FEDHASH_HOSTILE_MESSAGES=100000 $(BIN)/pytest -n 0 -o timeout=0 -k hostile $(HOSTILE)

# kill -9 of each kind of process of a whole consortium; FEDHASH_KILLS_SEED repeats a run's choices
test-kills: export FEDHASH_KILLS ?= 20
test-kills: install
	$(BIN)/pytest -n 0 -o log_cli=true --log-cli-level=INFO tests/e2e/test_kills.py

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@rm -rf build/wheel && mkdir -p build
	@$(BIN)/python -m build --wheel --no-isolation --outdir build/wheel . >build/wheel.log 2>&1 || { cat build/wheel.log; exit 1; }
	$(BIN)/check-wheel-contents build/wheel/*.whl

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# the compiled files are committed
proto: install
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. fedhash/search/wire/search.proto fedhash/registry/wire/releases.proto

schemas: install
	$(BIN)/python -m fedhash_sim.schemas

bench-quality: install
	$(BIN)/python -m benchmarks.bench_quality

# pfl pins other versions of torch's neighbours, so it has an environment of its own
build/pfl/.installed:
	$(PYTHON) -m venv build/pfl
	build/pfl/bin/python -m pip install --quiet pfl==0.6.0 torch
	@touch $@

bench-sim: install build/pfl/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.bench_sim

study: install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.studies $(STUDY)

bench-margins: install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.bench_margins

bench-search: install
	$(BIN)/python -m benchmarks.bench_search

bench-secagg: install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.bench_secagg

bench-network: install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.bench_network

bench-privacy: install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.bench_privacy

bench-router: install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.bench_router

bench-demo: install
	$(BIN)/python -m benchmarks.bench_demo

bench-docs: install
	$(BIN)/python -m benchmarks.tables

clean:
	rm -rf build .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.*
