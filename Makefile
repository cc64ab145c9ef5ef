# `make run` and `make test` on a bare clone do all the set-up. Everything lives in .venv; `make clean` removes it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# Workers for the tests: one a core, and one thread in each, so that two OpenMP pools do not fight over two cores.
JOBS   ?= $(shell nproc 2>/dev/null || echo 2)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

# Rooms without torch: strictly typed, and held at 95 % coverage (pyproject.toml lists them for coverage).
TORCH_FREE = $(wildcard src/pagoda/core src/pagoda/budget src/pagoda/schedule src/pagoda/plan \
	$(foreach f,pages table prefix audit manager reservations room live evictions compaction stats,src/pagoda/kv/$(f).py) \
	src/pagoda/sampling/params.py src/pagoda/sampling/scratch.py src/pagoda/models/shape.py)

.PHONY: run test test-gpu slow venv lint format types map sanitize cov ci clean help prices price tables documented speeds

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

run: $(STAMP)  ## install, let lantern tell a story, show tokens/s and the memory ledger
	$(BIN)/pagoda run lantern --prompt "Once upon a time" --max-tokens 120 --echo --verbose

test: $(STAMP)  ## install and run the whole test suite
	$(PYTEST) $(ARGS)

# The engine's own tests on a GPU: tokens, pages and policies are the CPU's. One process first, for what counts memory.
ENGINE_TESTS := $(addprefix tests/engine/test_,exactness every_policy policy_conformance selection_conformance answers policy_state \
	structured_output kv_formats kv_cache_dtype windowed_codecs refusals policies_live)
ENGINE_TESTS := $(addsuffix .py,$(ENGINE_TESTS))
# A GPU's products round by the size of the batch; these methods' own rounding makes other tokens of it on the tiny model.
ROUND_TWICE := (around or shared or preempted) and (a2ats or csr or bfp_outlier_rearrange or coupled_quantization)

test-gpu: $(STAMP)  ## the tests that need a CUDA device
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --device cuda -m gpu
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --device cuda -m "not gpu and not slow" -n 4 \
		-k "not ($(ROUND_TWICE)) and not all_formats_in_one_batch" $(ENGINE_TESTS)

slow: $(STAMP)  ## the tests that take minutes
	$(PYTEST) -m slow $(ARGS)

venv: $(STAMP)  ## prepare .venv (editable, test extras included)

# Constraints reach the build environment too (old pip reads PIP_CONSTRAINT there, new pip PIP_BUILD_CONSTRAINT).
$(STAMP): pyproject.toml constraints.txt CMakeLists.txt $(wildcard src/pagoda/kernels/csrc/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Pagoda needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 \
		$(BIN)/python -m pip install --quiet --no-input -e '.[test]'
	touch $@

lint: $(STAMP)  ## ruff: lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)  ## ruff: fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)  ## mypy, strict, in the rooms without torch
	$(BIN)/mypy $(TORCH_FREE)

# Kernels built with the compiler's checks for memory and undefined behaviour, in front of the tests that call them.
SANITIZED := build/sanitized
RUNTIMES   = $(shell $(CXX) -print-file-name=libasan.so) $(shell $(CXX) -print-file-name=libstdc++.so)

sanitize: $(STAMP)  ## tests of the C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer
	PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 \
		$(BIN)/python -m pip install --quiet --no-input --no-deps --upgrade --target $(SANITIZED) \
		-C cmake.define.PAGODA_SANITIZE=ON -C build-dir=$(SANITIZED)-cmake .
	LD_PRELOAD="$(RUNTIMES)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 OMP_NUM_THREADS=1 \
		PAGODA_EXTENSION=$$(ls $(SANITIZED)/pagoda/kernels/_cpu*.so) \
		$(BIN)/python -m pytest -q -x --capture=sys $(or $(ARGS),tests/kernels tests/models/test_program.py)

map: $(STAMP)  ## who may import whom
	$(BIN)/python -m pytest -q tests/test_import_map.py

# Each room is driven by its own tests: what others' tests happen to touch does not count.
ROOMS_WITHOUT_TORCH := $(addprefix tests/,core budget schedule plan kv sampling models/test_shape.py)
# Of the random lives, which take three times as long when lines are counted, those that mix all granularities.
SOME_LIVES := not (random_lives and not mixed)

cov: $(STAMP)  ## coverage of the rooms without torch by their own tests (at least 95 %)
	$(PYTEST) -q --cov --cov-report=term $(or $(ARGS),-k "$(SOME_LIVES)" $(ROOMS_WITHOUT_TORCH))

# Where the other models and the texts are (no data, no table). Small models are calibrated on the last quarter of theirs
# and judged by what comes before it, as the commands divide them; lantern by stories and books that it was not trained on.
DATA ?= ../shared/data
STORIES := --text $(DATA)/text/tinystories_valid_word_sample.txt.gz
BOOKS := build/text/held_out_books.txt
TEXTS := $(STORIES) --text $(DATA)/text/tinystories_train_head.txt.gz

# Copies of the small models, which are calibrated in a minute or two each; lantern ships calibrated.
SMALL := $(addprefix build/models/,stories260K bitnet-stories-3M)
PRICE := $(BIN)/pagoda bench kv --docs docs/kv-policies.md
METHODS := --methods docs/kv-methods.md

prices: $(STAMP) $(SMALL) $(BOOKS)  ## measure KV policies again and rewrite docs/kv-policies.md and docs/kv-methods.md
	$(PRICE) lantern --cases 36 $(STORIES) --text $(BOOKS) --data $(DATA) $(METHODS) $(ARGS)
	for model in $(SMALL); do \
	  $(PRICE) $$model --cases 36 --tasks perplexity,agreement $(TEXTS) $(METHODS) $(ARGS) || exit 1; done

# One row more in each list. The small models are calibrated copies where they were made, else the ones of DATA.
price: $(STAMP) $(BOOKS)  ## measure METHOD=… alone, and put it into the lists of docs/kv-policies.md and docs/kv-methods.md (minutes)
	@test -n '$(METHOD)' || { echo 'say which: make price METHOD=tova'; exit 2; }
	$(PRICE) lantern --add --policies '$(METHOD)' $(STORIES) --text $(BOOKS) --data $(DATA) $(METHODS) $(ARGS)
	for model in $(SMALL); do \
	  [ -d $$model ] || model=$(DATA)/models/$${model##*/}; \
	  $(PRICE) $$model --add --policies '$(METHOD)' $(TEXTS) $(METHODS) $(ARGS) || exit 1; done

tables: $(STAMP)  ## write what the docs say of each KV method anew: from its file, and what the lists have of it
	$(PRICE) lantern --no-quality --no-speed $(METHODS)

# Of copies, so that it needs no version control and changes nothing.
documented: $(STAMP)  ## whether the docs have every KV method as its file is
	mkdir -p build/documented && cp docs/kv-policies.md docs/kv-methods.md build/documented
	$(BIN)/pagoda bench kv lantern --no-quality --no-speed --docs build/documented/kv-policies.md --methods build/documented/kv-methods.md
	for page in kv-policies kv-methods; do diff -u docs/$$page.md build/documented/$$page.md || { echo 'write it by: make tables'; exit 1; }; done

speeds: $(STAMP) $(SMALL)  ## measure prefill, decode and deciding of the listed KV policies alone, on a quiet machine
	$(PRICE) lantern --no-quality $(METHODS)
	for model in $(SMALL); do $(PRICE) $$model --no-quality || exit 1; done

build/models/%: | $(STAMP)
	rm -rf $@.part
	mkdir -p $(@D)
	cp -r $(DATA)/models/$(@F) $@.part
	chmod -R u+w $@.part
	$(BIN)/pagoda calibrate all $@.part $(TEXTS)
	mv $@.part $@

$(BOOKS): | $(STAMP)
	mkdir -p $(@D)
	$(BIN)/python tools/held_out_text.py $(DATA) > $@.part
	mv $@.part $@

ci:  ## what CI runs
	bash .ci/run

clean:  ## remove everything that make made
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage* htmlcov
