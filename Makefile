# Two commands: `make demo` and `make test`. Both set up what they need in .venv, the tests' Label Studio in its own.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
PYTHON ?= python3

ifeq ($(wildcard .git)$(shell git rev-parse --git-dir),)
$(error this folder is no git repository, which DVC needs (a downloaded ZIP is none): run `git init` here, then go on)
endif

.PHONY: demo test lint bench lock

demo: .venv/installed ## the whole loop on the demo town, drawn, trained and labelled on this machine
	dvc repro
	python -m pipeline status

test: .venv/installed .venv-label-studio/installed ## every test, or some: make test ARGS="-m 'not server'"
	pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=10 $(ARGS)

lint: .venv/installed ## style, types, layers
	ruff check
	ruff format --check
	mypy
	lint-imports

bench: .venv/installed .venv-label-studio/installed ## scoring against the bare forward pass, Label Studio against its SDK
	python -m benchmarks.scoring
	python -m benchmarks.label_studio

.venv/installed: requirements.txt requirements-uv.txt
	$(PYTHON) -c 'import sys; sys.exit("Regain needs Python 3.11 or newer: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.txt
	uv pip sync --quiet --python .venv --require-hashes requirements-uv.txt requirements.txt
	touch $@

.venv-label-studio/installed: requirements-label-studio.txt | .venv/installed
	python -c 'from pipeline.annotators.label_studio.server import install; install()'

lock: ## resolve pyproject.toml anew; hashes, and no registry's host
	echo uv | uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header -o requirements-uv.txt -
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --group dev -o requirements.txt pyproject.toml
	echo label-studio==1.23.2 | uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header -o requirements-label-studio.txt -
