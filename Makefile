# `make run` and `make test` are all you need to start.  `make help` lists the rest.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# One more than there are processors, for tests that wait: still more would slow each other down.
TEST_PROCESSES ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
PYTEST = $(PY) -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help run test coverage lint format clients clients-check docs docs-serve bench bench-check soak upgrade-check \
	image sbom chart-check workflows-check monitoring-check integrations clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile

$(STAMP): requirements.txt requirements-otel.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "Python 3.11 or newer is needed, but $(PYTHON) is $$($(PYTHON) --version 2>&1). Try make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || \
		{ echo "$(PYTHON) can't create a virtual environment. Install its venv module (on Debian: apt-get install python3-venv)." >&2; exit 1; }
	@echo "Installing into $(VENV), which takes a minute or two ..."
	@$(PY) -m pip install --quiet --disable-pip-version-check --only-binary=:all: -r requirements-dev.txt || \
		{ echo "A package could not be installed; see the error above." >&2; exit 1; }
	@touch $(STAMP)

run: $(STAMP) ## start everything and send a first webhook; Ctrl-C stops it (PORT=8000)
	@exec $(PY) -m devstack.run

test: $(STAMP) ## run every test that isn't slow, on its own servers
	@exec $(PYTEST)

coverage: $(STAMP) ## run the slow tests, too, and count the lines and branches that all of them reach
	@exec $(PYTEST) -m "not bench" --cov --cov-report=term:skip-covered

lint: $(STAMP) ## check the code with ruff and mypy, and the links of the documentation
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) -m pytest -q --no-cov tests/project/test_docs_links.py

format: $(STAMP) ## format the code
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix --quiet .

TYPESCRIPT := clients/typescript
TYPESCRIPT_STAMP := $(TYPESCRIPT)/node_modules/.installed

$(TYPESCRIPT_STAMP): $(TYPESCRIPT)/package.json
	@command -v npm >/dev/null || { echo "Node.js 20 or newer with npm is needed." >&2; exit 1; }
	@cd $(TYPESCRIPT) && npm install --silent --no-audit --no-fund
	@touch $@

clients: $(STAMP) $(TYPESCRIPT_STAMP) ## generate the TypeScript client's types from the API, which needs Node.js
	@$(PY) -m scripts.openapi_document $(TYPESCRIPT)/openapi.json
	@cd $(TYPESCRIPT) && npm run --silent generate

clients-check: $(STAMP) $(TYPESCRIPT_STAMP) ## build, pack, and test the TypeScript client, and tell whether its types are stale
	@$(PY) -m scripts.openapi_document $(TYPESCRIPT)/openapi.json
	@cd $(TYPESCRIPT) && npm run --silent check || { echo "src/schema.ts is stale: run make clients." >&2; exit 1; }
	@CLIENTS_CHECK=1 exec $(PY) -m pytest -q tests/clients/test_typescript.py

bench: $(STAMP) ## measure performance: every scenario, or SCENARIO=name; ROWS=n for `history`; AGAINST=dir ROUNDS=3 compares two checkouts
	@exec $(PY) -m bench $(SCENARIO) $(if $(ROWS),--rows $(ROWS)) $(if $(AGAINST),--against $(AGAINST) --rounds $(or $(ROUNDS),3))

image: ## build the container image with Docker (IMAGE=triggers-api:latest)
	@docker build --tag $(or $(IMAGE),triggers-api:latest) .

# A tool with a separate environment: nothing of ours needs it.
SBOM_TOOL := .local/sbom-venv
$(SBOM_TOOL)/.installed-7.5.0:
	@$(PYTHON) -m venv $(SBOM_TOOL)
	@$(SBOM_TOOL)/bin/python -m pip install --quiet --disable-pip-version-check --only-binary=:all: cyclonedx-bom==7.5.0
	@touch $@

sbom: $(SBOM_TOOL)/.installed-7.5.0 ## list the Python packages of the image as a CycloneDX document: dist/sbom.cdx.json
	@mkdir -p dist
	@cat requirements.txt requirements-otel.txt | $(SBOM_TOOL)/bin/cyclonedx-py requirements \
		--output-reproducible --output-format JSON --output-file dist/sbom.cdx.json -
	@echo "dist/sbom.cdx.json: $$(grep -c '"purl"' dist/sbom.cdx.json) packages"

chart-check: $(STAMP) ## check what the Helm chart makes against the schemas of Kubernetes
	@$(PY) -m pip install --quiet --disable-pip-version-check kubernetes-validate==1.37.0
	@exec $(PY) -m scripts.check_chart

workflows-check: ## check the workflows of GitHub with actionlint, which needs Go
	@command -v go >/dev/null || { echo "Go 1.24 or newer is needed." >&2; exit 1; }
	@go run github.com/rhysd/actionlint/cmd/actionlint@v1.7.12

bench-check: $(STAMP) ## test the benchmarks
	@exec $(PY) -m pytest -m bench tests/bench

soak: $(STAMP) ## run the slow tests, then kill processes and servers under load and check that nothing is lost (SOAK_SEED, SOAK_ROUNDS, SOAK_PGBOUNCER)
	@$(PYTEST) -m slow
	@exec $(PY) -m soak

upgrade-check: $(STAMP) ## upgrade from the version before (FROM=v1.0.0) under load, and check that nothing is lost
	@exec $(PY) -m soak.upgrade $(if $(FROM),--from $(FROM))

monitoring-check: $(STAMP) ## ask a real Prometheus for everything that the board and the alerts show
	@exec $(PY) -m scripts.monitoring_check

integrations: $(STAMP) ## run the Zapier app, the n8n node, generated clients, and verifiers against a running system (ONLY=zapier); needs npm
	@exec $(PY) -m integrations.run $(ONLY)

# The site's packages are in a separate environment: the tests don't need them.
DOCS := .local/docs-venv
$(DOCS)/.installed: requirements-docs.txt
	@$(PYTHON) -m venv $(DOCS)
	@$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --only-binary=:all: -r requirements-docs.txt
	@touch $@

docs: $(DOCS)/.installed ## build the documentation into site/, and fail on links that lead nowhere
	@exec env NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build --strict

docs-serve: $(DOCS)/.installed ## serve the documentation on port 8001 while you write
	@exec env NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs serve --dev-addr localhost:8001

clean: ## delete the virtual environment, the local servers, and their data
	@if [ -x $(PY) ]; then $(PY) -m devstack.clean; fi
	rm -rf $(VENV) $(TYPESCRIPT)/node_modules $(TYPESCRIPT)/dist .local site dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
