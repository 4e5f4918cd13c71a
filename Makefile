# Two commands matter: `make demo` runs the main job, `make test` passes the tests. Each sets up .venv itself.
PYTHON ?= python3
PY := .venv/bin/python
PACKAGES := encoders store extract align evaluate
# The environment is rebuilt when the requirements (or the interpreter) change, not when the clock does.
STAMP := .venv/stamp-$(shell cat requirements.txt requirements-dev.txt | sha256sum | cut -c1-12)

.PHONY: demo test test-all lint format bench utd clean setup

setup: $(STAMP)

$(STAMP):
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --requirement requirements-dev.txt
	rm -f .venv/stamp-* && touch $@

demo: $(STAMP)   ## The main job on the samples and a synthetic NTU corpus; ends with demo/report.html
	$(PY) -m evaluate.demo --out demo

test: $(STAMP)   ## The fast suite (under five minutes)
	$(PY) -m pytest -m "not slow"

test-all: $(STAMP)   ## Everything: kills, full-size models, README commands
	$(PY) -m pytest

lint: $(STAMP)
	$(PY) -m ruff check $(PACKAGES) tests
	$(PY) -m ruff format --check $(PACKAGES) tests
	$(PY) -m mypy

format: $(STAMP)
	$(PY) -m ruff check --fix $(PACKAGES) tests
	$(PY) -m ruff format $(PACKAGES) tests

bench: $(STAMP)   ## Storage against its physical limits, as ratios
	$(PY) -m store.bench

clean:
	rm -rf .venv demo
