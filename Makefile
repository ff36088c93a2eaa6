# make demo   the gateway, the demo's backend and its page; prints the address to open
# make test   every test, from nothing: makes .venv, installs, then runs (a file or folder: make test T=tests/unit)
# make chaos  the long ones: stores that fail over, and what takes minutes
# make check  ruff and mypy
# The Python is the first that is new enough; another one: make test PYTHON=/opt/python3.13/bin/python3

NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for each in python3 python3.13 python3.12 python3.11; do \
	$$each -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$each && break; done)
BIN := .venv/bin
T ?= tests
WORKERS ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test chaos check clean
.DELETE_ON_ERROR:

demo: .venv/gateway
	$(BIN)/python -m client_demo

test: .venv/dev .venv/servers
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(T)

chaos: .venv/dev .venv/servers
	$(BIN)/python -m pytest -m chaos $(T)

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

.venv/dev: .venv/made pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[gateway]' --group dev
	@touch $@ .venv/gateway

.venv/servers: .venv/dev
	@command -v chromium >/dev/null || .ci/debian chromium
	@command -v curl >/dev/null || .ci/debian curl
	@command -v redis-server >/dev/null || .ci/debian redis-server
	@$(BIN)/playwright --version >/dev/null 2>&1 || .ci/debian libatomic1  # which its driver, a Node.js, is linked to
	@touch $@
