# `make demo` shows what Toque does; `make test` proves it. Both install what they need into .venv.

DEVICE ?= $(shell nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
MINUTES ?= 10
LOCKS := $(wildcard requirements/*.txt) requirements/install.sh pyproject.toml
BIN := .venv/bin

.PHONY: help install demo serve test lint generated lock bench-train bench-api bench-queue bench-serving \
  bench-comparison bench-estimates bench-soak bench-upload bench-validate bench-verdict fuzz clean

help:
	@echo "make demo         from a dataset to a custom model, side by side with prompting"
	@echo "make test         lint, types, contracts, and every test"
	@echo "make serve        the service on port 8000"
	@echo "make bench-train  our trainer against TRL's (DATASET=FILE for your own data)"
	@echo "make bench-api    the API's answers while a job trains on every core"
	@echo "make bench-queue  our queue's jobs per second against Procrastinate's"
	@echo "make bench-serving  many adapters over one base: correct, fast, cheap to reach"
	@echo "make bench-comparison  what a comparison costs beyond the engine's own time"
	@echo "make bench-upload  1 GB comes in, against a plain FastAPI handler"
	@echo "make bench-estimates  dry runs' time and memory against what then happens"
	@echo "make bench-soak   every job ends once, whatever is killed (MINUTES=10)"
	@echo "make bench-verdict  how often a comparison's verdict is wrong, on simulated ones"
	@echo "make bench-validate  the check of a 1 GB dataset against datasets + apply_chat_template (SIZE=MB)"
	@echo "make fuzz         a million hostile lines through the checks (LINES=1000000)"
	@echo "make install lint generated lock clean"

install: .venv/.installed

.venv/.installed: $(LOCKS)
	requirements/install.sh $(DEVICE)
	@touch $@

.venv/.installed-dev: $(LOCKS)
	requirements/install.sh $(DEVICE) dev
	@touch .venv/.installed $@

.venv/.installed-bench: $(LOCKS)
	requirements/install.sh $(DEVICE) dev bench
	@touch .venv/.installed .venv/.installed-dev $@

demo: install
	@$(BIN)/toque models pull smollm2-135m-instruct
	@$(BIN)/toque demo

serve: install
	$(BIN)/toque serve

lint: .venv/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --verbose
	$(BIN)/pyright

test: lint
	$(BIN)/pytest

generated: .venv/.installed-dev
	$(BIN)/python -m app.api > openapi/openapi.json
	$(BIN)/python -m docs.generate

lock: .venv/.installed-dev
	requirements/lock.sh

bench-train: .venv/.installed-bench
	@$(BIN)/toque models pull smollm2-135m-instruct
	@$(BIN)/python -m benchmarks.train $(if $(DATASET),--dataset $(DATASET))

bench-api: install
	@$(BIN)/toque models pull smollm2-135m-instruct
	@$(BIN)/python -m benchmarks.api

bench-queue: .venv/.installed-bench
	@$(BIN)/python -m benchmarks.queue

bench-serving: .venv/.installed-bench
	@$(BIN)/toque models pull smollm2-135m-instruct
	@$(BIN)/python -m benchmarks.serving

bench-comparison: .venv/.installed-dev
	@$(BIN)/toque models pull smollm2-135m-instruct
	@$(BIN)/python -m benchmarks.comparison

bench-upload: install
	@$(BIN)/python -m benchmarks.upload

bench-estimates: .venv/.installed-dev
	@$(BIN)/toque models pull smollm2-135m-instruct
	@$(BIN)/python -m benchmarks.estimates

bench-soak: .venv/.installed-dev
	@$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

bench-verdict: install
	@$(BIN)/python -m benchmarks.verdict

bench-validate: .venv/.installed-bench
	@$(BIN)/toque models pull smollm2-135m-instruct
	@$(BIN)/python -m benchmarks.validate $(if $(SIZE),--megabytes $(SIZE))

fuzz: .venv/.installed-dev
	@$(BIN)/python -m tests.app.datasets.fuzz $(if $(LINES),--lines $(LINES))

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
