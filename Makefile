# Two commands do everything on a fresh machine with Python 3.11+, a C++ compiler and make: `make run` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: run test chaos check serve bench clean

run: $(INSTALLED)  ## Set up, then teach a tiny English model Chinese on the offline sample
	$(BIN)/zhlm run configs/sample.yaml

test: $(INSTALLED)  ## Set up, then all checks and tests
	scripts/check
	scripts/browser >/dev/null
	$(BIN)/python -m pytest tests/integration

chaos: $(INSTALLED)  ## Kill packers and trainers 20 times each, and a trainer at 50 points: nothing is lost, doubled or changed by a bit
	ZHLM_KILLS=20 ZHLM_KILL_POINTS=50 $(BIN)/python -m pytest tests/integration/test_chaos.py tests/integration/test_kill_points.py

check: $(INSTALLED)  ## Format, lint, types, import contract, unit tests
	scripts/check

serve: $(INSTALLED)  ## Host the model that `make run` taught
	$(BIN)/zhlm serve runs/sample

bench: $(INSTALLED)  ## Measure packing, reading, memory, vocabularies and training; docs/benchmarks.md says what the numbers mean
	for name in pack read fill memory vocab trained_rows train matrix; do $(BIN)/python -m benchmarks.$$name || exit 1; done

clean:  ## Remove what `make run` and the checks wrote; the installed packages stay
	rm -rf runs build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(INSTALLED): pyproject.toml constraints.txt requirements-serve-cpu.txt scripts/install
	PYTHON=$(PYTHON) scripts/install
