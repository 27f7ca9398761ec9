# Needs python3 (3.11 or newer, with venv) and make; nothing else. Everything lands in .venv.
PYTHON ?= python3
BIN := .venv/bin
# two threads of OpenBLAS slow JAX's small Cholesky factorisations 10 to 100 times
export OPENBLAS_NUM_THREADS = 1

# a file of tests stays on one worker, which compiles what it shares once
WORKERS := -n auto --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := demo
.PHONY: demo test test-all lint docs lock clean

demo: .venv/ready
	$(BIN)/micjax demo tip

# what one worker has compiled no other one compiles again, today or tomorrow
test test-all: export JAX_COMPILATION_CACHE_DIR = $(CURDIR)/.pytest_cache/jax
test test-all: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS = 0
# and the bytecode of what commands that are started import is kept, whatever is set here
test test-all: export PYTHONDONTWRITEBYTECODE =

# most of the time of a test is compilation: without optimisation it takes two thirds, with XLA's
# former code generator three quarters; test-all compiles as the users do
test: export XLA_FLAGS = --xla_cpu_use_fusion_emitters=false
test: export JAX_DISABLE_MOST_OPTIMIZATIONS = 1
test: .venv/ready
	$(BIN)/python -m pytest -q $(WORKERS) -m "not slow"

test-all: .venv/ready
	$(BIN)/python -m pytest -q $(WORKERS)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: .venv/docs
	$(BIN)/sphinx-build -W -q docs docs/_build/html
	@echo docs/_build/html/index.html

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "micjax needs python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[io,zarr,dask,spm,structures,live,bluesky,tango,test,lint]'
	touch $@

.venv/docs: .venv/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

lock:  # the newest versions that pyproject.toml allows, one file for Python 3.11 to 3.13
	rm -rf .lock && $(PYTHON) -m venv .lock && .lock/bin/pip install --quiet uv
	.lock/bin/uv pip compile --universal --python-version 3.11 --all-extras --no-annotate --no-header \
		--no-emit-index-url -o constraints.txt pyproject.toml
	rm -rf .lock

clean:
	rm -rf .venv .lock runs docs/_build
