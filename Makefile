# Each target sets up what it needs; all of them can be run again at any time.
PYTHON ?= python3
VENV := .venv
DEMO := demo
BIN := $(VENV)/bin
PRECT := $(BIN)/prect
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench

.PHONY: help setup demo test test-slow lint format docs benchmark-harmonise benchmark-layout \
	benchmark-build benchmark-ingest benchmark-io benchmark-step benchmark-trainer learn clean

help:
	@echo "make setup   virtual environment with prect and everything it needs"
	@echo "make demo    synthetic patients -> stores -> pre-training -> weights, in $(DEMO)/"
	@echo "make test    the test suite"
	@echo "make lint    ruff and mypy"
	@echo "make docs    write the generated pages of docs/ again"
	@echo "make learn   proof that VoCo learns: small runs on phantoms against controls (half an hour)"
	@echo "make benchmark-step        a training step against a plain implementation (quarter of an hour)"
	@echo "make benchmark-trainer     the trainer against a bare loop, checkpoints, resuming (ten minutes)"
	@echo "make benchmark-io          random chunks and the loader against eight other readers (ten minutes)"
	@echo "make benchmark-harmonise   harmonisation against MONAI's chain, one core"
	@echo "make benchmark-layout      bytes and speed of chunks and codecs (ten minutes)"
	@echo "make benchmark-build       stores against MONAI's cache: bytes, speed, memory (quarter of an hour)"
	@echo "make benchmark-ingest      ingest of 1,000, 10,000 and 100,000 series (half an hour)"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	rm -rf $(DEMO)
	$(PRECT) phantom $(DEMO)/phantoms --cases 20 --seed 7 --size small --format mixed
	$(PRECT) ingest phantoms --source $(DEMO)/phantoms --workspace $(DEMO)/workspace --salt demo
	$(PRECT) build-cache phantoms --workspace $(DEMO)/workspace
	$(PRECT) train --preset demo --gpus 0 --workspace $(DEMO)/workspace \
		--set 'data.datasets=["phantoms"]' --set run.name=demo
	$(PRECT) export $(DEMO)/workspace/runs/demo $(DEMO)/encoder.safetensors
	$(PRECT) replay --run demo --step 1 --workspace $(DEMO)/workspace --out $(DEMO)/replay
	$(PRECT) status --workspace $(DEMO)/workspace
	@echo
	@echo "phantoms     $(DEMO)/phantoms"
	@echo "stores       $(DEMO)/workspace/cache/phantoms"
	@echo "manifests    $(DEMO)/workspace/manifests/phantoms"
	@echo "run          $(DEMO)/workspace/runs/demo (metrics.jsonl, summary.json, checkpoints)"
	@echo "weights      $(DEMO)/encoder.safetensors"
	@echo "picture of what step 1 read:  $(DEMO)/replay"

# The processes of a test run share the cores; threads of each would only wait for one another.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m 'not slow'

test-slow: setup
	$(BIN)/python -m pytest -m slow --timeout 3600

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: setup
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/generate_checks.py

$(BENCH_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	@touch $@

benchmark-io: $(BENCH_STAMP)
	$(PRECT) benchmark-io --json benchmark-io.json --png benchmark-io.png

benchmark-step: setup
	$(BIN)/python benchmarks/step.py --json benchmark-step.json --docs docs

benchmark-trainer: setup
	$(BIN)/python benchmarks/trainer.py --json benchmark-trainer.json --docs docs

learn: setup
	$(BIN)/python benchmarks/learn.py --json learn.json --docs docs

benchmark-harmonise: setup
	$(BIN)/python benchmarks/harmonise.py

benchmark-layout: setup
	$(BIN)/python benchmarks/layout.py

benchmark-build: setup
	$(BIN)/python benchmarks/build.py

benchmark-ingest: setup
	$(BIN)/python benchmarks/ingest_scale.py

clean:
	rm -rf $(VENV) $(DEMO) *.egg-info
