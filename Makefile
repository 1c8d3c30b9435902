# Two commands on a fresh machine (Python 3.11 to 3.13, make, a C++ compiler): `make quickstart` and `make test`.
#
# `make quickstart` installs what a run needs, with the build of torch for CPUs. `make quickstart TORCH=torch` takes the
# one for GPUs, and a torch that is in .venv already stays.

PYTHON ?= python3.11
BIN := .venv/bin
TORCH ?= torch==2.13.0+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PIP := $(BIN)/pip --quiet --disable-pip-version-check
READY := .venv/.installed
READY_TO_TEST := .venv/.installed-dev

.PHONY: quickstart test test-all check format clean

quickstart: $(READY)
	$(BIN)/w2s run studies/quickstart.yaml

test: check
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

test-all: check
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m ''

check: $(READY_TO_TEST)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY_TO_TEST)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The first try finds what this machine's pip is set up to find, the second asks TORCH_INDEX.
$(READY): pyproject.toml setup.py
	test -d .venv || $(PYTHON) -m venv .venv || python3 -m venv .venv
	$(BIN)/pip show --quiet torch 2>/dev/null || $(PIP) install '$(TORCH)' 2>/dev/null || $(PIP) install '$(TORCH)' --index-url $(TORCH_INDEX)
	$(PIP) install --editable '.[embedded]'
	touch $(READY)

$(READY_TO_TEST): $(READY)
	$(PIP) install --editable '.[dev,embedded]'
	touch $(READY_TO_TEST)

clean:
	rm -rf .venv w2s-store w2s-out *.egg-info
