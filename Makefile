# Two commands do everything on a fresh Debian or Ubuntu: `make demo` and `make test`.

PY := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help demo test check lint types floors object coverage bench survive exchanges soak docker-test systemd-test loadtest loadtest-native loadtest-quick kernel-matrix bpf schema lock clean tools

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1	/p' Makefile | while IFS='	' read -r name text; do \
		printf '  make %-15s %s\n' "$$name" "$$text"; done

demo: ## install what it needs, start backends and proxy, show real requests spliced in the kernel
	@.ci/setup run
	@$(PY) -m l7proxy.demo

test: tools ## install what it needs; unit, property, socket and kernel tests (as root: all of them)
	@.ci/test

check: lint types floors object coverage ## lint, format, types, floors, every branch of the routing core, the BPF object rebuilt

lint: tools
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: tools
	$(PY) -m mypy --strict

floors: tools
	$(PY) -m pytest -q -p no:cacheprovider tests/unit/test_floors.py tests/unit/test_top_level.py

object: tools
	.ci/check-object

coverage: tools ## fails if the unit tests leave out a branch of the routing core or of the readers of bodies and responses
	@mkdir -p build
	$(PY) -m coverage run -m pytest -q -p no:cacheprovider tests/unit/test_routing*.py \
		tests/unit/test_gateway_api*.py tests/unit/test_filters.py tests/unit/test_patterns.py \
		tests/unit/test_chunked.py tests/unit/test_response.py
	$(PY) -m coverage report

survive: tools ## 5,000 spliced connections through killed workers and supervisors, an upgrade and 20 reloads (as root; a minute or two)
	L7PROXY_SURVIVORS=5000 $(PY) -m pytest -q -p no:cacheprovider tests/kernel/test_survival.py

exchanges: tools ## 10,000 random HTTP exchanges on each datapath, each against its model (as root; minutes)
	L7PROXY_EXCHANGES=$${L7PROXY_EXCHANGES:-10000} $(PY) -m pytest -q -s -p no:cacheprovider tests/exchanges

soak: tools ## ten minutes of mixed traffic, killed workers, lost endpoints, reloads and upgrades (as root)
	$(PY) -m pytest -q -s -p no:cacheprovider tests/soak/mixed.py

bench: tools ## what a routing decision costs, by the number of routes; as root, what it costs to hand a pair over
	$(PY) -m tests.bench.routing
	@if [ "$$(id -u)" = 0 ]; then $(PY) -m tests.bench.handover; fi

COMPOSE ?= $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)
loadtest: ## l7proxy against a direct connection, HAProxy, nginx and Envoy, in containers (takes hours, see ARGS)
	cd docker/loadtest && LOADTEST_ARGS="$(ARGS)" \
		LOADTEST_ENGINE="Docker $$(docker version --format '{{.Server.Version}}')" \
		$(COMPOSE) up --build --abort-on-container-exit --exit-code-from client

loadtest-native: ## the load test without containers, on loopback (as root; takes hours, see ARGS)
	@.ci/setup loadtest
	cd docker && ../$(PY) -m loadtest native $(ARGS)

loadtest-quick: ## the same in short, to see where each stands (as root; under 5 minutes)
	@.ci/setup loadtest
	cd docker && ../$(PY) -m loadtest native --quick $(ARGS)

docker-test: tools ## build the image, run docker/compose.yaml for real (as root: starts an engine where none is)
	@.ci/docker

systemd-test: tools ## the units of docker/systemd/ under a real systemd in namespaces (as root)
	L7PROXY_SYSTEMD=1 $(PY) -m pytest -p no:cacheprovider tests/systemd

kernel-matrix: tools ## the data-path tests on Debian's 6.1 and 6.12 kernels in qemu (takes minutes)
	$(PY) tests/matrix/run.py

bpf: tools ## rebuild l7proxy/datapath/l7proxy.bpf.o (clang-14)
	$(MAKE) -C bpf

schema: tools ## make policies/schema.json and policies/README.md from the language's tables
	$(PY) -m l7proxy schema > policies/schema.json
	$(PY) -m l7proxy schema --manual > policies/README.md

lock: ## resolve the requirements anew into the two lock files
	@.ci/lock

clean: ## remove what the other targets made
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

tools:
	@.ci/setup test
