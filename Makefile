# `make demo` shows what Toque does, and `make test` proves it. Both install what they need into .venv.

DEVICE ?= $(shell nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
MINUTES ?= 10
PROCESSES ?= 2
LOCKS := $(wildcard requirements/*.txt) requirements/install.sh pyproject.toml
BIN := .venv/bin
INSTALL_CHROMIUM := apt-get install --yes --no-install-recommends chromium-headless-shell fonts-dejavu-core
CHROMIUM := command -v chromium-headless-shell >/dev/null || $(INSTALL_CHROMIUM) || { apt-get update && $(INSTALL_CHROMIUM); }

.PHONY: help install demo demo-tools serve test test-quick test-bases test-clients test-s3 test-trackers test-cluster \
  test-dashboards test-pgbouncer test-api chart install-trackers install-fleet lint generated screenshots lock bench-train bench-api \
  bench-queue bench-bases bench-batch bench-serving bench-comparison bench-console bench-estimates bench-fair-share \
  bench-fleet bench-hostile bench-routing bench-soak bench-turns bench-upload bench-usage bench-validate \
  bench-vanish bench-verdict fuzz clean

help:
	@echo "make demo              train a model on the demo's data and compare it with prompting"
	@echo "make demo-tools        the same with function calls: does the model call the right ones?"
	@echo "make serve             run the service on port 8000"
	@echo "make test              lint, types, contracts and all tests (PROCESSES=2)"
	@echo "make test-quick        lint, types, contracts and the unit tests, in a minute or two"
	@echo "make test-bases        every family of base models, trained and served; writes docs/bases.md"
	@echo "make test-api          all phases of Schemathesis against the service, for an administrator and a stranger"
	@echo "make test-clients      OpenAI's clients, LangChain and others against one service; writes docs/clients.md"
	@echo "make test-s3           storage in a bucket, on a real S3 server: nothing shared, crashes, a server that is away"
	@echo "make test-trackers     metrics of jobs in a real MLflow server, trackio and W&B's offline mode"
	@echo "make test-cluster      workers and engines that come and go on a Ray cluster of this machine"
	@echo "make test-pgbouncer    what shares the database, behind pgbouncer in transaction mode"
	@echo "make test-dashboards   the queries of deploy/ in a real Prometheus"
	@echo "make chart             the Helm chart, rendered and validated with each of its sets of values"
	@echo "make lint              formatting, lint, import contracts and types"
	@echo "make generated         write openapi/openapi.json and the generated pages of docs/"
	@echo "make screenshots       write the pictures of the console in docs/screenshots"
	@echo "make install           install what the service needs into .venv"
	@echo "make install-trackers  also what sends metrics to MLflow, trackio and W&B"
	@echo "make install-fleet     also Ray, for workers and engines that come and go with the work"
	@echo "make lock              update the pinned requirements (UPGRADE=1 for new versions)"
	@echo "make clean             remove .venv and build files"
	@echo
	@echo "make bench-train       our trainer against TRL's (DATASET=FILE for your own data)"
	@echo "make bench-bases       every family of base models: how many are trained and served rightly"
	@echo "make bench-estimates   predicted time and memory of jobs against what they take"
	@echo "make bench-serving     many adapters over one base: correctness, speed, overhead of the gateway"
	@echo "make bench-batch       a batch against a plain client, and what it costs those who wait"
	@echo "make bench-hostile     what one caller's attacks cost another (ATTACK=NAME)"
	@echo "make bench-fair-share  what one project's waiting requests cost another"
	@echo "make bench-fleet       jobs per second of one, two and four workers on a Ray cluster of this machine"
	@echo "make bench-comparison  a comparison's time against the engine's own"
	@echo "make bench-console     the console's pages with much data, and what looking at them costs others"
	@echo "make bench-verdict     how often the verdict of a simulated comparison is wrong"
	@echo "make bench-validate    the check of a 1 GB dataset against datasets (SIZE=MB)"
	@echo "make bench-upload      an upload of 1 GB against a plain FastAPI handler"
	@echo "make bench-api         the API's response times while a job trains on every core"
	@echo "make bench-queue       our queue's jobs per second against Procrastinate's"
	@echo "make bench-routing     adapters loaded and engines' loads, against the routing of before"
	@echo "make bench-usage       how fast gateways write what was used, against sums that they share"
	@echo "make bench-soak        jobs while processes are killed and frozen (MINUTES=10)"
	@echo "make bench-turns       a short job behind a long one on the same base model"
	@echo "make bench-vanish      a job while everything is killed every 45 seconds"
	@echo "make fuzz              a million hostile lines through the checks (LINES=1000000)"

install: .venv/.installed

install-trackers: .venv/.installed-trackers

install-fleet: .venv/.installed-fleet

.venv/.installed: $(LOCKS)
	requirements/install.sh $(DEVICE)
	@touch $@

.venv/.installed-dev: $(LOCKS)
	requirements/install.sh $(DEVICE) dev
	@touch .venv/.installed $@

.venv/.installed-trackers: $(LOCKS)
	requirements/install.sh $(DEVICE) trackers
	@touch .venv/.installed $@

.venv/.installed-fleet: $(LOCKS)
	requirements/install.sh $(DEVICE) fleet
	@touch .venv/.installed $@

.venv/.installed-chart: $(LOCKS)
	requirements/install.sh $(DEVICE) chart
	@touch .venv/.installed $@

.venv/.installed-bench: $(LOCKS)
	requirements/install.sh $(DEVICE) dev bench
	@touch .venv/.installed .venv/.installed-dev $@

demo: install
	@$(BIN)/toque models pull smollm2-135m-instruct
	@$(BIN)/toque demo

demo-tools: install
	@$(BIN)/toque models pull smollm2-135m-instruct
	@$(BIN)/toque demo --tools

serve: install
	$(BIN)/toque serve

lint: .venv/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --verbose
	$(BIN)/pyright

test: lint
	$(CHROMIUM)
	$(BIN)/pytest --numprocesses $(PROCESSES)

test-quick: lint
	$(BIN)/pytest -m unit tests/app

test-bases: .venv/.installed-dev
	$(BIN)/python -m tests.bases --page docs/bases.md

test-trackers: .venv/.installed-dev .venv/.installed-trackers
	$(BIN)/pytest tests/trackers

test-s3: .venv/.installed-dev
	$(BIN)/python -m tests.s3.server
	$(BIN)/pytest -m s3 tests/s3

test-cluster: .venv/.installed-dev .venv/.installed-fleet
	command -v redis-server >/dev/null || apt-get install --yes --no-install-recommends redis-server
	$(BIN)/pytest -m cluster tests/cluster

test-api: .venv/.installed-dev
	$(BIN)/python -m tests.specification.fuzz

test-clients: .venv/.installed-dev
	$(BIN)/python -m tests.clients --page docs/clients.md

test-pgbouncer: .venv/.installed-dev
	command -v pgbouncer >/dev/null || apt-get install --yes --no-install-recommends pgbouncer
	$(BIN)/pytest --pgbouncer -k "postgresql or pgbouncer" tests/deploy/pgbouncer.py tests/app/fine_tuning/test_queue.py \
	  tests/app/fine_tuning/test_race.py tests/app/fine_tuning/test_fair_queue.py tests/app/core/test_lease.py \
	  tests/app/limits tests/app/usage tests/app/webhooks tests/workers/training/test_idleness.py

test-dashboards: .venv/.installed-dev
	command -v promtool >/dev/null || apt-get install --yes --no-install-recommends prometheus
	$(BIN)/pytest tests/deploy/prometheus_queries.py

chart: .venv/.installed-dev .venv/.installed-chart
	command -v promtool >/dev/null || apt-get install --yes --no-install-recommends prometheus
	$(BIN)/pytest tests/deploy/chart.py

generated: .venv/.installed-dev
	$(BIN)/python -m app.api > openapi/openapi.json
	$(BIN)/python -m docs.generate

screenshots: .venv/.installed-dev
	$(CHROMIUM)
	$(BIN)/python -m docs.screenshots

lock: .venv/.installed-dev
	requirements/lock.sh

bench-train: .venv/.installed-bench
	@$(BIN)/toque models pull smollm2-135m-instruct
	@$(BIN)/python -m benchmarks.train $(if $(DATASET),--dataset $(DATASET))

bench-bases: .venv/.installed-dev
	@$(BIN)/python -m tests.bases

bench-api: install
	@$(BIN)/toque models pull smollm2-135m-instruct
	@$(BIN)/python -m benchmarks.api

bench-routing: .venv/.installed-dev
	@$(BIN)/python -m benchmarks.routing

bench-usage: .venv/.installed-dev
	@$(BIN)/python -m benchmarks.usage

bench-queue: .venv/.installed-bench
	@$(BIN)/python -m benchmarks.queue

bench-serving: .venv/.installed-bench
	@$(BIN)/toque models pull smollm2-135m-instruct
	@$(BIN)/python -m benchmarks.serving

bench-hostile: .venv/.installed-dev
	@$(BIN)/toque models pull smollm2-135m-instruct
	@$(BIN)/python -m benchmarks.hostile $(ATTACK)

bench-fair-share: .venv/.installed-dev
	@$(BIN)/toque models pull smollm2-135m-instruct
	@$(BIN)/python -m benchmarks.fair_share

bench-fleet: .venv/.installed-dev .venv/.installed-fleet
	@$(BIN)/python -m benchmarks.fleet

bench-batch: .venv/.installed-dev
	@$(BIN)/toque models pull smollm2-135m-instruct
	@$(BIN)/python -m benchmarks.batch

bench-comparison: .venv/.installed-dev
	@$(BIN)/toque models pull smollm2-135m-instruct
	@$(BIN)/python -m benchmarks.comparison

bench-console: .venv/.installed-dev
	$(CHROMIUM)
	@$(BIN)/toque models pull smollm2-135m-instruct
	@$(BIN)/python -m benchmarks.console

bench-upload: install
	@$(BIN)/python -m benchmarks.upload

bench-estimates: .venv/.installed-dev
	@$(BIN)/toque models pull smollm2-135m-instruct
	@$(BIN)/python -m benchmarks.estimates

bench-soak: .venv/.installed-dev
	@$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

bench-turns: install
	@$(BIN)/toque models pull smollm2-135m-instruct
	@$(BIN)/python -m benchmarks.turns

bench-vanish: install
	@$(BIN)/toque models pull smollm2-135m-instruct
	@$(BIN)/python -m benchmarks.vanish

bench-verdict: install
	@$(BIN)/python -m benchmarks.verdict

bench-validate: .venv/.installed-bench
	@$(BIN)/toque models pull smollm2-135m-instruct
	@$(BIN)/python -m benchmarks.validate $(if $(SIZE),--megabytes $(SIZE))

fuzz: .venv/.installed-dev
	@$(BIN)/python -m tests.app.datasets.fuzz $(if $(LINES),--lines $(LINES))

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
