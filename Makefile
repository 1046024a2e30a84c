PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint clean

# The main job on real images: look at demo/contact-sheet.png afterwards.
demo: $(VENV)/installed
	$(BIN)/rebalance demo --out demo

# Two processes of one thread each: threads that spin for each other cost several times what they save.
test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Made once and used by every target; made anew when the dependencies change.
$(VENV)/installed: setup.cfg setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
