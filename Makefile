# Everything runs in .venv, installed with the versions of constraints.txt. Needs only Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where pip finds torch, e.g. make test TORCH_FLAGS="--index-url https://download.pytorch.org/whl/cpu"
TORCH_FLAGS ?=
# Two test processes, one thread each: more threads than cores make small networks slower.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint check format bench-depth clean

demo: $(VENV)/installed-demo
	$(BIN)/unvanish demo

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Plain networks of 1,000 layers on digits; the record: make bench-depth DEPTH=10000
DEPTH ?= 1000
bench-depth: $(VENV)/installed-dev
	$(BIN)/python benchmarks/init_depth.py --depth $(DEPTH)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .coverage

# torch comes first and pinned, so that nothing later can pull in another build of it.
$(VENV)/torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt $(TORCH_FLAGS) "torch==2.13.0"
	touch $@

$(VENV)/installed-demo: $(VENV)/torch pyproject.toml
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[demo]"
	touch $@

$(VENV)/installed-dev: $(VENV)/torch pyproject.toml
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
# timm without what it depends on: torchvision brings a torch of its own. The tests read two files that need only torch.
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps timm
	touch $@ $(VENV)/installed-demo
