# `make run` shows the whole system, `make test` proves it; both make their own environment.
PYTHON ?= python3
VENV := out/venv
BIN := $(VENV)/bin

.PHONY: run test check format gpu clean

run: $(VENV)/ready
	$(BIN)/python examples/tour.py

test: $(VENV)/ready
	$(BIN)/pytest

check: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files 'plugins/*.h' 'plugins/*.cuh' 'plugins/*.cu' 'plugins/*.cpp' | xargs -r $(BIN)/clang-format --dry-run --Werror

format: $(VENV)/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Where there is an NVIDIA GPU: its machine's own Python with torch and pytest, nothing is installed.
gpu:
	$(PYTHON) benchmarks/gpu

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[client,server,fleet,onnx,tensorrt-rtx,dev]'
	$(BIN)/python build/build_native.py
	touch $@

clean:
	rm -rf out
