# Everything goes through .venv, which `make setup` fills from requirements/dev.lock.
# Works with GNU make 3.81 and newer.

BIN := .venv/bin
PY := $(BIN)/python
STAMP := .venv/.stamp
NEWER := 3.12 3.13 3.14
FLOWER_PORT := 5555

# .venv is ours to write bytecode into: without it every process compiles all that it imports anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.SUFFIXES:

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## Make .venv with everything that demo and test need
	@:

# The stamp names its folder, so that a clone that was moved is set up anew.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif
$(STAMP): requirements/dev.lock requirements/install.sh pyproject.toml
	@requirements/install.sh .venv requirements/dev.lock -e .
	@printf '%s\n' '$(CURDIR)' > $@

demo: setup ## Run the main job: ask your own Python
	@$(BIN)/loomq fake-llm --extractive --port 0 --unless-configured -- $(BIN)/loomq run pydocs
	@printf '\n%s\n' 'Next:'
	@printf '  %s\n' \
	    '$(BIN)/loomq run ask "how do I retry a connection with a timeout?"   ask the index' \
	    '$(BIN)/loomq list                                                    see what else can run' \
	    '$(BIN)/loomq dev                                                     keep everything running'

dev: setup ## Start embedded services, a worker node and beat; one Ctrl-C ends all
	@$(BIN)/loomq dev

# The password stays out of process lists, and is told this once.
flower: setup ## Watch the tasks in Flower: read-only, with a password, on this machine only
	@password=$$($(PY) -c 'import secrets; print(secrets.token_urlsafe(12))') && \
	printf '%s\n' "Flower: http://127.0.0.1:$(FLOWER_PORT)   user: loomq   password: $$password" && \
	FLOWER_BASIC_AUTH="loomq:$$password" FLOWER_UNAUTHENTICATED_API= exec $(BIN)/celery -A loomq flower \
	    --address=127.0.0.1 --port=$(FLOWER_PORT) --read_only

test: setup ## Run all tests
	@$(PY) -m pytest -q -n 2 --dist loadfile

test-unit: setup ## Run the unit tests only, which touch no service
	@$(PY) -m pytest -q tests/unit

test-wheel: setup ## Build the wheel and use it in an empty venv
	@$(PY) -m pytest -q -m wheel tests/architecture

test-newer: setup ## Run the unit tests under each newer Python that is present
	@.ci/newer $(NEWER)

check: lint types floors spelling test ## All that must hold before a commit: lint, types, floors, spelling, tests

lint: setup ## Check style and format (ruff)
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --quiet --check
	@echo 'lint: ok'

format: setup ## Bring the code into its format
	@$(BIN)/ruff check --quiet --fix
	@$(BIN)/ruff format --quiet

types: setup ## Check types (mypy --strict)
	@$(BIN)/mypy

floors: setup ## Check that no import runs upward (import-linter)
	@$(BIN)/lint-imports --no-logo

spelling: setup ## Check spelling (codespell)
	@$(BIN)/codespell
	@echo 'spelling: ok'

chaos: setup ## Inject every kind of fault for a quarter of an hour: 3 x 500 goals, the broker down for 60 s, crash points
	@$(PY) -m tests.chaos storm --goals 500 --faults 45 --seeds 1 2 3
	@$(PY) -m tests.chaos storm --goals 500 --faults 45 --seeds 4 --amqp
	@$(PY) -m tests.chaos storm --goals 300 --faults 45 --seeds 5 --limited
	@$(PY) -m tests.chaos broker-down --seconds 60 --submits 200
	@$(PY) -m pytest -q -m chaos tests/chaos

chaos-quick: setup ## The same in three minutes
	@$(PY) -m tests.chaos storm --goals 100 --faults 20 --seeds 1
	@$(PY) -m tests.chaos storm --goals 60 --faults 12 --seeds 2 --limited
	@$(PY) -m tests.chaos broker-down --seconds 10 --submits 40
	@$(PY) -m tests.chaos schedules --ticks 60 --interval 0.5 --every 5
	@$(PY) -m pytest -q -m chaos tests/chaos/test_crash_points.py tests/chaos/test_crash_points_in_turns.py

chaos-schedules: setup ## Two beats of which either is killed or stopped every 10 s: 200 due times, a goal each
	@$(PY) -m tests.chaos schedules

bench: setup ## Compare with raw Celery and other systems, and measure what has to stay flat: ten minutes
	@$(PY) -m benchmarks.compare
	@$(PY) -m benchmarks.compare --flush-ms 2 --systems loomq celery_redis
	@$(PY) -m benchmarks.growth

bench-quick: setup ## Compare with raw Celery, in half a minute: a table, and a JSON line a figure
	@$(PY) -m benchmarks.compare --quick

bench-pipelines: setup ## Measure makespan, messages and a for_each over 10,000 items: a JSON line a DAG
	@$(PY) -m benchmarks.pipelines

bench-limits: setup ## Measure limits over eight processes of which some are killed, turns and priorities: a JSON line a limit
	@$(PY) -m benchmarks.limits

bench-llm: setup ## Measure a hundred calls to a language model at once in one process: a JSON line a part
	@$(PY) -m benchmarks.llm

bench-sweeper: setup ## Measure the sweeper over 10,000 open stages, and a backlog of 100,000
	@$(PY) -m benchmarks.sweeper

# Keeps the pins that still fit; `make lock UPGRADE=--upgrade` takes the newest.
COMPILE = uv pip compile --quiet $(UPGRADE) --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
    --no-emit-index-url --no-emit-find-links

lock: setup ## Pin the dependencies anew, with hashes and no addresses
	@PATH="$$PATH:$(CURDIR)/.tools/uv/bin"; \
	$(COMPILE) pyproject.toml --extra embedded --group dev -o requirements/dev.lock && \
	$(COMPILE) pyproject.toml --extra embedded -c requirements/dev.lock -o requirements/runtime.lock && \
	echo uv | $(COMPILE) - -o requirements/uv.lock

clean: ## Remove what was built and cached; data and .tools stay
	@rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help setup demo dev flower test test-unit test-wheel test-newer check lint format types floors spelling \
    chaos chaos-quick chaos-schedules bench bench-quick bench-pipelines bench-limits bench-llm bench-sweeper lock clean
