# Every target does its own set-up: a fresh machine needs Python >= 3.11 with its venv module, and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SCENARIO ?= cluster

# What a simulation spends its time in. mypyc makes C of it: half the time, the same event logs to the byte.
COMPILED_DIR := build/compiled
COMPILED_MODULES := zephyr/model.py zephyr/events.py \
	$(addprefix zephyr/gossip/,messages.py news.py phi.py suspicion.py table.py swim.py wire.py) \
	chaos/network.py chaos/gossip_world.py

.PHONY: help demo test browser check simulate chaos etcd-faults convergence containers images bench clean

help:
	@echo "make demo      five nodes and etcd on this machine, and a tour of what they survive"
	@echo "make test      all tests"
	@echo "make browser   the /debug page in a headless browser, on clusters that are killed; needs Chromium"
	@echo "make check     ruff, mypy --strict, import contracts, shellcheck"
	@echo "make simulate  random runs in virtual time: SCENARIO=$(SCENARIO) SEEDS=2000 NODES=10,100; also lifeguard, crash,"
	@echo "               container, silent, pause, partition, join, idle, plan and claims; with a C compiler, COMPILED=1 is twice as fast"
	@echo "make chaos     tests that take minutes, and those on containers (needs Docker and Compose)"
	@echo "make etcd-faults  what etcd can do to a cluster, row by row, with the figures of docs/etcd-faults.md"
	@echo "make convergence  how soon all views are one again, row by row, with the figures of docs/convergence.md: REPETITIONS=10;"
	@echo "               needs Docker and Compose, and root for network namespaces"
	@echo "make containers   a Compose cluster killed, stopped, scaled; needs Docker and Compose"
	@echo "make images    the container images of deploy/, by stand-ins where no registry can be reached"
	@echo "make bench     what it costs, against baselines of the same run: ONLY=http,replica,batch-put for some rows;"
	@echo "               needs wrk"
	@echo "                ONLY=detection (not in a full run): kinship is installed in .venv-bench; needs serf, and root for silence"
	@echo "make clean     remove what the targets made"

$(INSTALLED): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/zephyr demo $(ARGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 4 --dist worksteal $(ARGS)

browser: $(VENV)/.installed-browser
	$(BIN)/python -m pytest -m browser --numprocesses 2 --dist worksteal $(ARGS) tests/api tests/end_to_end

$(VENV)/.installed-browser: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,browser]'
	@touch $@

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/shellcheck --external-sources chaos/*.sh
	$(BIN)/shellcheck --severity=warning deploy/*.sh .ci/*

simulate: $(INSTALLED) $(if $(COMPILED),$(COMPILED_DIR)/.made)
	$(if $(COMPILED),cd $(COMPILED_DIR) &&) $(abspath $(BIN))/python -m chaos.simulate --scenario $(SCENARIO) \
		$(if $(SEEDS),--seeds $(SEEDS)) $(if $(NODES),--nodes $(NODES)) $(ARGS)

$(COMPILED_DIR)/.made: $(INSTALLED) $(shell find zephyr chaos -name '*.py') setup.cfg Makefile
	rm -rf $(COMPILED_DIR)
	mkdir -p $(COMPILED_DIR)
	cp -R zephyr chaos setup.cfg README.md $(COMPILED_DIR)
	cd $(COMPILED_DIR) && $(abspath $(BIN))/mypyc --config-file setup.cfg $(COMPILED_MODULES) > mypyc.log
	@touch $@

chaos: $(INSTALLED) containers
	$(BIN)/python -m pytest -m chaos $(ARGS)

etcd-faults: $(INSTALLED)
	$(BIN)/python -m pytest -m "chaos or not chaos" $(ARGS) tests/end_to_end/test_etcd_matrix.py

convergence: $(INSTALLED) images
	ZEPHYRCACHE_REPETITIONS=$(or $(REPETITIONS),10) $(BIN)/python -m pytest -m "chaos or not chaos" -k "not short" $(ARGS) \
		tests/end_to_end/test_convergence.py tests/containers/test_container_convergence.py

containers: $(INSTALLED) images
	$(BIN)/python -m pytest -m containers $(ARGS) tests/containers

images:
	deploy/images.sh

bench: $(INSTALLED)
	$(BIN)/python -m bench $(if $(ONLY),--only "$(ONLY)") $(ARGS)

clean:
	rm -rf $(VENV) .venv-bench build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
