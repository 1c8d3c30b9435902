# Two commands on a fresh machine (Python 3.11, make, a C++ compiler): `make quickstart` and `make test`.

PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.installed

.PHONY: quickstart test test-all check format clean

quickstart: $(READY)
	$(BIN)/w2s run studies/quickstart.yaml

test: check
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

test-all: check
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m ''

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(READY): pyproject.toml
	test -d .venv || $(PYTHON) -m venv .venv || python3 -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,embedded]'
	touch $(READY)

clean:
	rm -rf .venv w2s-store w2s-out *.egg-info
