# Everything a developer runs. `make help` lists it.

VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?=
SUPPORTED := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))

.DEFAULT_GOAL := help
.NOTPARALLEL:  # one environment, one pip at a time

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

.PHONY: quickstart
quickstart: $(VENV)/.installed ## the whole road on this machine: train, register, serve, ask
	$(BIN)/llmos quickstart

.PHONY: install
install: $(VENV)/.installed-dev ## .venv with everything that `check` and `test` need

.PHONY: check
check: $(VENV)/.installed-dev ## lint, format, strict types, the structure of the tree
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python scripts/check_structure.py

.PHONY: test
test: $(VENV)/.installed-dev ## the tests that CI runs, with coverage: three processes without Ray, then one at a time with it
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit -n 3 --dist loadfile --no-loadscope-reorder --cov --cov-report= -m "not slow"
	$(BIN)/python -m pytest tests/ray tests/e2e --cov --cov-append -m "not slow" --session-timeout=1500

.PHONY: test-full
test-full: $(VENV)/.installed-dev ## every test, also those that take minutes
	HYPOTHESIS_PROFILE=full $(BIN)/python -m pytest --cov

.PHONY: test-gpu
test-gpu: $(VENV)/.installed-dev ## the tests that need a CUDA card
	$(BIN)/python -m pytest tests/gpu

.PHONY: test-vllm
test-vllm: $(VENV)/.installed-dev ## the tests of vLLM as an engine, in its environment under .bench/ (3.4 GB, made if missing)
	$(BIN)/python -m benchmarks.peers vllm
	.bench/vllm/venv/bin/python -m pytest tests/vllm -W default

.PHONY: conformance
conformance: $(VENV)/.installed-dev ## OpenAI's own tests, clients and schemathesis against our server (LLMOS_DATA, LLMOS_OPENAI_PYTHON: see there)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.conformance --log docs/evidence/conformance.log

.PHONY: bench-peers
bench-peers: $(VENV)/.installed-dev ## .bench/: what we are compared with, each in an environment of its own
	$(BIN)/python -m benchmarks.peers

.PHONY: bench-train
bench-train: $(VENV)/.installed-dev ## every figure of training beside its peer (minutes to hours; QUICK=--quick: minutes)
	$(BIN)/python -m benchmarks.train $(QUICK)

.PHONY: bench-serve
bench-serve: $(VENV)/.installed-dev ## every figure of serving beside its peer (QUICK=--quick: at most 8 minutes)
	$(BIN)/python -m benchmarks.serve $(QUICK)

.PHONY: bench-frontdoor
bench-frontdoor: $(VENV)/.installed-dev ## every figure of the front door beside its peers (QUICK=--quick: at most 8 minutes)
	$(BIN)/python -m benchmarks.frontdoor $(QUICK)

.PHONY: bench-sched
bench-sched: $(VENV)/.installed-dev ## every figure of the scheduler beside the references (QUICK=--quick: smaller)
	$(BIN)/python -m benchmarks.sched $(QUICK)

.PHONY: wheel
wheel: $(VENV)/.installed-dev ## dist/: the wheel, and what another machine needs to install it
	rm -rf build dist
	$(BIN)/python -m build --wheel --outdir dist
	cp constraints.txt scripts/install.py dist/

.PHONY: constraints
constraints: $(VENV)/.installed-dev ## pin the versions that are installed now in constraints.txt
	$(BIN)/python scripts/constraints.py > constraints.tmp && mv constraints.tmp constraints.txt

.PHONY: docs
docs: $(VENV)/.installed-dev ## write docs/specs.md anew from the models in llmos/spec
	$(BIN)/python scripts/spec_docs.py > specs.tmp && mv specs.tmp docs/specs.md

.PHONY: pictures
pictures: $(VENV)/.installed-dev ## draw docs/pictures anew: what the scheduler makes of each scenario in docs/scenarios
	set -e; for scenario in docs/scenarios/*.yaml; do \
	    $(BIN)/llmos simulate plan $$scenario --picture docs/pictures/$$(basename $$scenario .yaml).svg; done

.PHONY: clean
clean: ## remove what was built; .venv stays (rm -r .venv for a fresh one)
	rm -rf build dist *.egg-info .coverage .coverage.* htmlcov .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# A stamp per set of packages: a second run installs nothing unless one of these files has changed.
INPUTS := pyproject.toml constraints.txt scripts/install.py

$(VENV)/.installed: $(INPUTS) | $(BIN)/pip
	$(BIN)/python scripts/install.py --editable .
	@touch $@

$(VENV)/.installed-dev: $(INPUTS) | $(BIN)/pip
	$(BIN)/python scripts/install.py --editable '.[dev]'
	@touch $@ $(VENV)/.installed

$(BIN)/pip:
	@for python in $(or $(PYTHON),python3.12 python3.11 python3); do \
	    if $$python -c '$(SUPPORTED)' 2>/dev/null; then exec $$python -m venv $(VENV); fi; \
	done; \
	echo 'error: llmos needs Python 3.11 or 3.12 with the modules venv and ensurepip; none of these is one:' \
	     '$(or $(PYTHON),python3.12 python3.11 python3)' >&2; \
	echo '  install one (Debian, Ubuntu: apt install python3.11-venv), or name it: make PYTHON=/path/to/python3.12' >&2; \
	exit 2
