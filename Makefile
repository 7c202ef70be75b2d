# Every target sets up .venv by itself on a fresh machine; set-up is done once, and again when what it depends on has changed.
VENV  := .venv
BIN   := $(VENV)/bin
TORCH ?= 2.13.0# or: latest
ARGS  ?=
# Tests run side by side, a process for each core, with one PyTorch thread in each
JOBS  ?= auto
PIP    = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# The first Python from 3.10 on that can make virtual environments
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10 python; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && { echo $$p; break; }; done)

setup_files := settings.ini setup.py pyproject.toml constraints.txt
base := $(VENV)/.ready-$(TORCH)

.PHONY: help train test lint size site test-site lab bench export clean
help:
	@echo "make train   train chapter 08's network (ARGS='--epochs 3' passes options; ARGS=--help lists them)"
	@echo "make test    run all tests, notebooks included (ARGS='-k 04' passes options to pytest)"
	@echo "make lint    ask ruff and mypy, and check that the notebooks are clean and exported (a minute)"
	@echo "make size    print the package's lines of code against their budget"
	@echo "make site    build the documentation site into _site/"
	@echo "make test-site  build the site, and test it in Chromium, which has to be on the machine (three minutes)"
	@echo "make lab     open the course in JupyterLab"
	@echo "make bench   time the package against loops by hand and its peers, and write benchmarks/results.md (five minutes; ARGS=--all for the recipes as well)"
	@echo "make export  write the package minifastai/ anew from the notebooks"
	@echo "make clean   remove what was built, .venv included; runs/ is kept"

train: $(base)
	$(BIN)/minifastai-train $(ARGS)

test: $(base)-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

lint: $(base)-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_sync.py -k notebooks

size: $(BIN)/python
	$(BIN)/python tools/size.py

site: $(base)-docs
	rm -rf _site
	$(BIN)/python -m sphinx -W --keep-going --quiet -b html docs _site
	@echo "Built: open _site/index.html"

test-site: site $(base)-dev $(base)-browser
	MINIFASTAI_SITE=_site $(BIN)/python -m pytest tests/test_site.py $(ARGS)

lab: $(base)-dev
	$(BIN)/jupyter lab nbs $(ARGS)

bench: $(base)-bench
	$(BIN)/python benchmarks/report.py $(ARGS)

export: $(base)-dev
	$(BIN)/python tools/export.py

clean:
	rm -rf $(VENV) _site docs/_build _proc build dist *.egg-info

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "minifastai needs Python 3.10 or newer with its venv module (on Debian and Ubuntu: apt install python3-venv). None was found; name one by: make PYTHON=/path/to/python3 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# PyTorch comes first, in the version that is asked for: the package's own range would take the newest
$(base): $(BIN)/python $(setup_files)
	@echo "Setting up $(VENV): this takes a few minutes, once"
	$(PIP) torch$(if $(filter latest,$(TORCH)),,==$(TORCH))
	$(PIP) -e '.[digits]'
	@touch $@

$(base)-dev: $(base)
	$(PIP) -e '.[dev]'
	@touch $@

$(base)-bench: $(base)
	$(PIP) -e '.[bench]'
	@touch $@

$(base)-docs: $(base)
	$(PIP) -e '.[docs]'
	@touch $@

$(base)-browser: $(base)
	$(PIP) -e '.[browser]'
	@touch $@
