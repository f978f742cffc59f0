# Two commands do everything: `make demo` and `make test`. Each sets up .venv first, once, with any Python from 3.11.
#   make test PYTHON=python3.13    to choose it
.POSIX:

PYTHON =
IN = .venv/bin/python

.PHONY: help demo test test-all lint bench clean venv venv-dev

help:
	@echo 'make demo      compute a job on a network of this machine and pay for it'
	@echo 'make test      the tests, without the slow ones'
	@echo 'make test-all  all tests'
	@echo 'make lint      ruff and mypy'
	@echo 'make bench     the benchmarks, in their short form'
	@echo 'make clean     remove what these made, .venv included'
	@echo 'PYTHON=...     the Python to make .venv with (3.11 or newer; found if not given)'

demo: venv
	@$(IN) example.py

# In three processes: tests of whole networks mostly wait for each other's processes, the others compute.
test: venv-dev
	@$(IN) -m pytest -m "not slow" -n 3 --dist loadfile

test-all: venv-dev
	@$(IN) -m pytest

lint: venv-dev
	@$(IN) -m ruff check .
	@$(IN) -m mypy

bench: venv-dev
	@$(IN) -m benchmarks --short

# The script finds out by itself, in no time, whether there is anything to do.
venv:
	@sh tools/make-venv "$(PYTHON)" requirements.lock

venv-dev:
	@sh tools/make-venv "$(PYTHON)" requirements-dev.lock

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist ./*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
