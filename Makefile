# One-line targets; .ci/run and the workflows call the same ones.
PYTHON ?= .venv/bin/python

.PHONY: install kernels test test-all test-numpy test-gpu sanitizers kills mutants lint types imports docs notebooks wheel bench all

install:            ## a virtual environment with everything to develop
	python3 -m venv .venv && .venv/bin/pip install -q -e ".[dev]"

kernels:            ## build the C kernels in place, after an edit
	$(PYTHON) -m gpulayers.ops.compiled

test:               ## all but the slow and the GPU tests
	$(PYTHON) -m pytest -q -n 2 -m "not slow and not gpu"

test-all:           ## the same with every case on every engine, not a sample
	GPULAYERS_TEST_CASES=all $(PYTHON) -m pytest -q -n 2 -m "not slow and not gpu"

test-numpy:         ## the loop, its precision and its resumption once more without the C kernels
	GPULAYERS_ENGINE=numpy $(PYTHON) -m pytest -q -n 2 -m "not slow and not gpu and not emulated and not compiled" \
		$(addprefix tests/training/test_,trainer.py precision.py resume.py)

sanitizers:         ## the C kernels under AddressSanitizer and UndefinedBehaviorSanitizer
	$(PYTHON) -m pytest -q -m slow tests/ops/test_sanitizers.py

kills:              ## training runs killed at random moments, resumed, compared bit for bit
	$(PYTHON) -m pytest -q -m slow tests/training/test_killing.py

bench:              ## a short comparison with PyTorch on the CPU; fails if a ratio fell by half
	$(PYTHON) benchmarks/cpu.py --cases lenet,conv3x3 --rounds 3 --check benchmarks/results/cpu.json

test-gpu:           ## on a machine with a CUDA device; a missing device is a failure
	$(PYTHON) -m pytest -q -m gpu --require-gpu

mutants:            ## do the kernel tests notice faults planted in the kernels?
	$(PYTHON) -m pytest -q -n 2 --dist worksteal -m slow tests/meta

lint:
	$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check .

types:
	$(PYTHON) -m pyright --pythonpath $(PYTHON)

imports:            ## imports run one way
	$(PYTHON) -c "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"

docs:               ## the pages and the reference as HTML, in docs/_build
	$(PYTHON) -m sphinx -q -W --keep-going -E -b html docs docs/_build

notebooks:          ## run every notebook; the committed outputs are left alone
	$(PYTHON) tools/run_notebooks.py examples/*.ipynb

wheel:              ## build the wheel, install it elsewhere, train ten steps
	$(PYTHON) -m pytest -q -m slow tests/packaging

all: lint types imports docs test test-numpy sanitizers kills wheel notebooks mutants bench
