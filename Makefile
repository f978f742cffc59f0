# Two commands do everything: `make demo` and `make test`. Each sets up .venv first, once.
PYTHON ?= $(shell command -v python3.13 || command -v python3.12 || command -v python3.11 || command -v python3 || echo python3)
