# `make stage5` and `make test` prepare everything they need. `make help` says what else there is.

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?=
ARGS ?=

BIN := $(VENV)/bin
TORCH := $(sort $(shell sed -n 's/.*"\(torch==[^"]*\)".*/\1/p' pyproject.toml))

# A set-up is done when its stamp exists. The stamp's name holds a checksum of what was asked for,
# so a changed pyproject.toml (or EXTRAS) asks for another stamp.
KEY := $(shell { echo "$(EXTRAS)"; cat pyproject.toml; } | cksum | cut -d ' ' -f 1)
STAGE5_READY := $(VENV)/.ready-stage5-$(KEY)
TEST_READY := $(VENV)/.ready-test-$(KEY)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help stage5 test lint docs

help:
	@echo "make stage5   train and judge the stage-5 agents: experiments.stage5, seeds 42 1337 9001"
	@echo "make test     lint, then every test"
	@echo "make lint     ruff, pyright and import-linter only"
	@echo "make docs     the documentation, as pages in build/docs"
	@echo
	@echo "Each first prepares $(VENV) (once, until pyproject.toml changes). Variables:"
	@echo "  PYTHON=python3.12   the Python (3.11 to 3.13) to make $(VENV) with; now $(PYTHON)"
	@echo "  EXTRAS=cuda12       further extras of pyproject.toml to install, separated by commas"
	@echo "  ARGS='...'          more arguments for experiments.stage5, or for pytest"

stage5: $(STAGE5_READY)
	$(BIN)/python -m experiments.stage5 --seeds 42 1337 9001 $(ARGS)

test: lint
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

docs: $(TEST_READY)
	$(BIN)/python -m sphinx -n -W --keep-going -q docs build/docs

lint: $(TEST_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --project pyproject.toml --pythonpath $(BIN)/python
	$(BIN)/lint-imports

$(STAGE5_READY):
	$(call set_up,export)
	@touch $@

# The test set-up holds the stage-5 one.
$(TEST_READY):
	$(call set_up,export gymnax gymnasium tracking peers docs dev)
	@touch $@ $(STAGE5_READY)

empty :=
comma := ,
comma_separated = $(subst $(empty) $(empty),$(comma),$(strip $(subst $(comma), ,$(1))))

define CHECK_PYTHON
import sys
if not (3, 11) <= sys.version_info[:2] < (3, 14):
    sys.exit(
        "jaxtrader needs Python 3.11, 3.12 or 3.13, and %s is Python %d.%d. Name another one, as in\n"
        "    make $(MAKECMDGOALS) PYTHON=python3.12\n"
        "(and delete $(VENV) first if it is there: it keeps the Python it was made with)."
        % ((sys.executable,) + sys.version_info[:2])
    )
endef
export CHECK_PYTHON

# $(call set_up,EXTRAS): every line stops make when it fails. torch goes first and on its own, so
# that whichever build of it pip was told to use (CPU, CUDA) is there when the rest is resolved.
define set_up
@if [ -x $(BIN)/python ]; then $(BIN)/python -c "$$CHECK_PYTHON"; else $(PYTHON) -c "$$CHECK_PYTHON"; fi
@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
@rm -f $(VENV)/.ready-*
$(BIN)/python -m pip install "$(TORCH)"
$(BIN)/python -m pip install --editable ".[$(call comma_separated,$(1) $(EXTRAS))]"
endef
