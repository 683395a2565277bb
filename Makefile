# Two commands: `make demo` and `make test`. Both make the environment they need.

PYTHON ?= python3
VENV ?= .venv
# Where else pip looks; for torch without CUDA see docs/install.md.
PIP_ARGS ?=

# Tests run at the same time; each of these takes up to 5 GB.
WORKERS ?= 2
SIDE_BY_SIDE = -n $(WORKERS) --dist loadfile --no-loadscope-reorder

INSTALLED := $(VENV)/.installed

.PHONY: demo demo-training accelerator bench bench-report docs test test-all test-exhaustive \
	test-mutants test-alarms test-latest lint types clean

demo: $(INSTALLED)
	$(VENV)/bin/python -m benchmarks.demo

# Real digits, begun in torch and ended in Flax; and depth with and without shortcuts.
demo-training: $(INSTALLED)
	$(VENV)/bin/python -m benchmarks.demo_training $(OUT)

# Both twins in a few modes; ARGS=--help shows what can be chosen. Other libraries take
# part if they are there: $(VENV)/bin/pip install -e '.[bench-peers]'.
bench: $(INSTALLED)
	$(VENV)/bin/python -m benchmarks $(ARGS)

# All that is to be known of an accelerator, in eight minutes, with the Python that has the
# frameworks: nothing is installed. SMALL=1 tries it on a CPU.
accelerator:
	$(PYTHON) -m benchmarks.accelerator --out $(or $(OUT),out/accelerator)

# The site: build/docs/index.html. A warning is an error, and so is a reference that
# leads nowhere.
docs: $(INSTALLED)
	$(VENV)/bin/python -m sphinx -W --keep-going -n -q docs build/docs
	@echo "build/docs/index.html"

# The tables of docs/benchmarks.md and of the README, and the picture, from
# docs/bench.json.
bench-report: $(INSTALLED)
	$(VENV)/bin/python -m benchmarks.results.readme

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest $(SIDE_BY_SIDE)

# And what it leaves out: full-size networks, every mode; then the gates and what is
# compared with the references once more, compiled as users compile.
AS_USERS_COMPILE = $(addprefix tests/judging/test_,check.py ties.py pairs_of_others.py) \
	$(addprefix tests/twins/test_,twins.py maps.py train_step.py compiling.py)
test-all: test
	RESNET_TWINS_TESTS=examples $(VENV)/bin/python -m pytest $(SIDE_BY_SIDE) \
		-m 'slow and not exhaustive'
	RESNET_TWINS_TESTS=compile $(VENV)/bin/python -m pytest $(SIDE_BY_SIDE) \
		$(AS_USERS_COMPILE)

# Two hundred random networks, none of which may raise an alarm.
test-alarms: $(INSTALLED)
	$(VENV)/bin/python -m pytest -n $(WORKERS) tests/judging/test_alarms.py -m ''

# All there is, with four times the examples, for hours.
test-exhaustive: $(INSTALLED)
	RESNET_TWINS_TESTS=all $(VENV)/bin/python -m pytest -n $(WORKERS) -m ''

# Every fault that the check must catch; `make test` tries a few.
test-mutants: $(INSTALLED)
	$(VENV)/bin/python -m pytest -n $(WORKERS) tests/mutants/test_mutants.py -m ''

# The Flax twin on the newest versions there are, against what the torch twin of the
# pinned ones gives: an environment of its own, which needs no torch.
LATEST_PYTHON ?= $(firstword $(foreach python,python3.13 python3.12,\
	$(shell $(python) -c 'print("$(python)")' 2>/dev/null)) $(PYTHON))
LATEST ?= .venv-latest

test-latest: $(INSTALLED)
	$(LATEST_PYTHON) -m venv $(LATEST)
	$(LATEST)/bin/pip install --quiet --upgrade $(PIP_ARGS) -e '.[flax]' pytest
	$(VENV)/bin/python -m tests.latest.record $(LATEST)/recorded
	$(LATEST)/bin/pip freeze | grep -iE '^(jax|jaxlib|flax|optax|numpy)='
	RESNET_TWINS_RECORDED=$(LATEST)/recorded $(LATEST)/bin/python -m pytest \
		--noconftest -m '' tests/latest

lint: $(INSTALLED)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

types: $(INSTALLED)
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@# They ask for older versions than they work with, or for what they need not.
	$(VENV)/bin/pip install $(PIP_ARGS) --no-deps -c constraints.txt jaxnn mlx-image
	@touch $@

clean:
	rm -rf $(VENV) $(LATEST)
