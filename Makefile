# Two commands matter: `make demo` runs the main job, `make test` passes the tests. Each sets up .venv itself.
PYTHON ?= python3
PY := .venv/bin/python
UTD ?= ../shared/data/utd_mhad
SEEDS ?= 0 1 2
PACKAGES := encoders store extract align evaluate
# The environment is rebuilt when the requirements (or the interpreter) change, not when the clock does.
STAMP := .venv/stamp-$(shell cat requirements.txt requirements-dev.txt | sha256sum | cut -c1-12)

.PHONY: demo cmvra test test-all lint format bench utd utd-e2e clean setup

setup: $(STAMP)

$(STAMP):
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --requirement requirements-dev.txt
	rm -f .venv/stamp-* && touch $@

# Real sign-language clips, and a synthetic NTU corpus that is learnable but not trivial.
demo: $(STAMP)   ## The main job; ends with demo/report.html. Run again, it encodes nothing twice.
	$(PY) -m extract.datasets.synthetic --out demo/ntu --clips 320 --actions 10
	$(PY) -m extract --dataset synthetic --root demo/ntu --bank demo/bank
	$(PY) -m extract --dataset samples --bank demo/bank
	$(PY) -m store info --bank demo/bank
	$(PY) -m align --config configs/align/demo.yaml --bank demo/bank
	$(PY) -m evaluate probe --dataset synthetic --bank demo/bank
	$(PY) -m evaluate probe --dataset synthetic --bank demo/bank --checkpoint latest
	$(PY) -m evaluate fuse --dataset synthetic --bank demo/bank --checkpoint latest --against raw-late
	$(PY) -m evaluate retrieve --dataset synthetic --bank demo/bank --checkpoint latest
	$(PY) -m evaluate zero-shot --dataset synthetic --bank demo/bank --checkpoint latest
	$(PY) -m evaluate search "somebody takes a seat" --dataset synthetic --bank demo/bank --checkpoint latest
	$(PY) -m evaluate search "a woman reading" --dataset samples --bank demo/bank
	$(PY) -m evaluate report --bank demo/bank --out demo/report.html

# CMVRA's workflow on a synthetic NTU corpus: four modalities, both of NTU's protocols, from files to a report.
cmvra: $(STAMP)   ## Ends with demo/cmvra.html and the README's table
	$(PY) -m extract.datasets.synthetic --out demo/ntu --clips 320 --actions 10
	$(PY) -m extract --dataset synthetic --root demo/ntu --bank demo/cmvra
	$(call cmvra-protocol,cross-subject)
	$(call cmvra-protocol,cross-view)
	$(PY) -m evaluate report --bank demo/cmvra --out demo/cmvra.html
	$(PY) -m store sql "$$CMVRA_TABLE" --bank demo/cmvra

# The newest accuracies, a row for what was PRESENT: the README's table.
define CMVRA_TABLE
PIVOT (
    SELECT protocol, modality AS present, 100 * value AS percent, started_at, CASE metric
        WHEN 'probe/accuracy' THEN if(aligned_on IS NULL, 'probe, stored', 'probe, aligned')
        WHEN 'fuse/accuracy' THEN 'fused, ' || (detail ->> 'fusion') ELSE split_part(metric, '/', 1) END AS what
    FROM leaderboard WHERE metric IN ('probe/accuracy', 'knn/accuracy', 'fuse/accuracy')
        OR (metric = 'zero-shot/accuracy' AND detail ->> 'prompt_set' = 'all sets'))
ON what USING round(arg_max(percent, started_at), 1)
GROUP BY protocol, present ORDER BY protocol, length(present), present
endef
export CMVRA_TABLE

define cmvra-protocol
	$(PY) -m evaluate probe --protocol $(1) --bank demo/cmvra
	$(PY) -m align --config configs/align/cmvra/synthetic.yaml --protocol $(1) --bank demo/cmvra
	$(PY) -m evaluate probe --protocol $(1) --bank demo/cmvra --checkpoint latest
	$(PY) -m evaluate fuse --protocol $(1) --bank demo/cmvra --checkpoint latest \
		--methods late,cmvra --options '{"cmvra": {"epochs": 200}}'
	$(PY) -m evaluate knn --protocol $(1) --bank demo/cmvra --checkpoint latest
	$(PY) -m evaluate zero-shot --protocol $(1) --bank demo/cmvra --checkpoint latest
	$(PY) -m evaluate retrieve --protocol $(1) --bank demo/cmvra --checkpoint latest
	$(PY) -m evaluate geometry --protocol $(1) --bank demo/cmvra --checkpoint latest
endef

test: $(STAMP)   ## The fast suite (six to eight minutes on two cores)
	$(PY) -m pytest -m "not slow" -n 2 --dist loadfile

test-all: test   ## Everything: then kills, full-size models, README commands, one at a time
	$(PY) -m pytest -m slow

lint: $(STAMP)
	$(PY) -m ruff check $(PACKAGES) tests
	$(PY) -m ruff format --check $(PACKAGES) tests
	$(PY) -m mypy

format: $(STAMP)
	$(PY) -m ruff check --fix $(PACKAGES) tests
	$(PY) -m ruff format $(PACKAGES) tests

utd: $(STAMP)    ## The UTD-MHAD tables of the README; needs ../shared/data/utd_mhad (or UTD=FOLDER)
	$(PY) -m extract --dataset utd-mhad --root $(UTD) --bank demo/utd-bank
	$(PY) -m evaluate.utd_mhad --bank demo/utd-bank

# Anchors once; per seed: a head on the frozen encoder; encoder and head together; extracted with; both probed.
E2E := --bank demo/utd-e2e-bank
RECIPES := configs/align/end_to_end
SMALL := --dataset utd-mhad --modality depth --encoder efficientnet-lite0 --preset small --frames 8
FROZEN_SET := SELECT name FROM feature_sets WHERE modality = 'depth' AND spec ->> '$$.space.preprocess.size' = '128' \
	ORDER BY created_at LIMIT 1
utd-e2e: $(STAMP) ## What training a depth encoder end to end gains on UTD-MHAD (SEEDS="0 1 2")
	$(PY) -m extract --dataset utd-mhad --root $(UTD) $(E2E)
	$(PY) -m extract $(SMALL) $(E2E)
	anchors=$$($(PY) -m align --config $(RECIPES)/anchors.yaml $(E2E)); \
	frozen_set=$$($(PY) -m store sql "$(FROZEN_SET)" --format csv $(E2E) | tail -n 1); \
	for seed in $(SEEDS); do \
		still=$$($(PY) -m align --config $(RECIPES)/depth-frozen.yaml --init $$anchors --seed $$seed \
			--modalities.depth.encoder $$frozen_set $(E2E)) && \
		run=$$($(PY) -m align.end_to_end --config $(RECIPES)/depth.yaml --init $$anchors --seed $$seed $(E2E)) && \
		$(PY) -m extract $(SMALL) --weights $$run/encoder_depth.safetensors $(E2E) || exit 1; \
		ours=$$ours$${ours:+,}$$run; rival=$$rival$${rival:+,}$$still; \
	done; \
	$(PY) -m evaluate gain $$ours $$rival depth $(E2E)

bench: $(STAMP)   ## Storage, extraction, alignment, the probe and search against their limits and rivals, as ratios
	$(PY) -m store.bench
	$(PY) -m extract.bench --profile
	$(PY) -m align.bench
	$(PY) -m evaluate.bench index
	$(PY) -m evaluate.bench search
	$(PY) -m evaluate.bench probe

clean:
	rm -rf .venv demo
