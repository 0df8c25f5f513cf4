# kata-gpu: `make demo` shows it working, `make test` proves it. `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
SAMPLES := .cache/nv-local-gpu-verifier/verifier/samples
PEERS := .cache/nv-attestation-sdk
PYTEST_FLAGS ?= -n 2
FUZZ_SECONDS ?= 600
ifdef REQUIRE_VECTORS
PYTEST_FLAGS += --require-vectors
endif
.DELETE_ON_ERROR:
.PHONY: help demo test check lint types layers bench gate performance fuzz soak e2e lab lab-short samples peers test-deps lock proto manifests images release sbom audit docs clean dev

help: ## List the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.runtime samples ## The whole path, from a simulated host to a decrypted model
	@$(BIN)/python -m tests.demo

test: $(VENV)/.dev samples peers ## Every test that this machine can run; says what it left out
	$(PYTEST) $(PYTEST_FLAGS)

check: lint types layers ## Exactly what CI runs: static checks, tests without an unlisted skip, demo, e2e, real kernel, ratios, release
	$(MAKE) test PYTEST_FLAGS="$(PYTEST_FLAGS) --allowed-skips tests/allowed-skips.txt"
	$(MAKE) demo
	$(MAKE) e2e
	$(MAKE) lab-short
	$(MAKE) gate
	$(MAKE) release

lint: $(VENV)/.dev ## Style and static checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check -q .

types: $(VENV)/.dev
	$(BIN)/mypy

layers: $(VENV)/.dev
	$(BIN)/lint-imports

samples: $(SAMPLES)/hopperCertChain.txt ## Fetch and unpack (not install) the public wheel with genuine Hopper evidence

$(SAMPLES)/hopperCertChain.txt: requirements/samples.lock | $(VENV)/.runtime
	@rm -rf .cache/nv-local-gpu-verifier && mkdir -p .cache/nv-local-gpu-verifier
	@$(BIN)/pip download -q --no-deps --require-hashes -r requirements/samples.lock -d .cache
	@$(BIN)/python -m zipfile -e .cache/nv_local_gpu_verifier-2.7.3-py3-none-any.whl .cache/nv-local-gpu-verifier
	@touch $@

# Other people's tools, each in an environment of its own, to be compared with.
peers: $(PEERS)/.installed .cache/peers/sev-snp-measure/.installed

.cache/peers/%/.installed: requirements/%.lock | $(VENV)/bin/python
	@rm -rf $(@D) && $(BIN)/python -m venv $(@D)
	@$(@D)/bin/pip install -q --disable-pip-version-check --require-hashes -r $<
	@touch $@

$(PEERS)/.installed: requirements/peers.lock | $(VENV)/bin/python
	@rm -rf $(PEERS) && $(BIN)/python -m venv $(PEERS)
	@$(PEERS)/bin/pip install -q --disable-pip-version-check --require-hashes -r requirements/peers.lock
	@touch $@

test-deps: ## Debian packages for the tests that need a real server, browser or machine (root)
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql softhsm2 chromium \
		qemu-system-x86 busybox-static cpio kmod gcc libc6-dev flex bison bc libelf-dev

e2e: $(VENV)/.dev ## Pod to plaintext with real processes, then each link broken in turn: who notices, what they are told
	$(PYTEST) -m e2e -x -vv tests/e2e --allowed-skips /dev/null  # all of it or none

lab-short: $(VENV)/.dev ## The kernel's semantics on a stock Debian kernel in QEMU, row by row
	$(PYTEST) -m lab tests/lab/test_lab_short.py

lab: $(VENV)/.dev ## Software GPUs on real kernels: setup, PPCIe, faults, guard, crashes, lockdown, nested VM
	$(PYTEST) -m lab tests/lab

soak: $(VENV)/.dev ## Long forms of the fault and load tests
	$(PYTEST) -m soak -s

bench: $(VENV)/.dev samples ## Figures as ratios to limits and peers; exits 1 on a missed promise
	$(BIN)/python -m tests.bench $(BENCH)

gate: $(VENV)/.dev samples ## Ratios of the quiet suites against the record of docs/performance.md; exits 1 where one got worse
	$(BIN)/python -m tests.bench --gate --json out/gate.json

performance: $(VENV)/.dev ## Keep the last `make bench` as the record, and render docs/performance.md from it
	$(BIN)/python -m tests.bench --keep

fuzz: $(VENV)/.dev ## Mutate evidence of every kind for FUZZ_SECONDS (600): no crash, no hang, no acceptance
	$(BIN)/python -m tests.attestation.gpu.fuzz $(FUZZ_SECONDS)

manifests: $(VENV)/.runtime ## Render RuntimeClasses, kustomize bases and the Helm chart again
	$(BIN)/python -m runtimeclass render runtimeclass/manifests
	$(BIN)/python -m deploy.render

images: $(VENV)/.runtime ## Build the three container images where podman, buildah or docker answers; BASE_IMAGE=name@sha256:...
	@$(BIN)/python -m deploy.build_images $(if $(BASE_IMAGE),--base $(BASE_IMAGE))

release: $(VENV)/.dev sbom ## Wheel and sdist built twice and equal, installed in an empty environment, SHA256SUMS, in out/release
	@$(BIN)/python -m deploy.release out/release

docs: $(VENV)/.runtime ## Render docs/cli and docs/doctor.md again
	@$(BIN)/python -m deploy.cli_reference docs

audit: $(VENV)/.dev ## Known advisories of what is locked, from PyPI's service (network); fails where it is not told about every package
	@$(BIN)/python -m deploy.audit

sbom: $(VENV)/.dev ## Bills of materials of the locked requirements, CycloneDX, in out/
	@mkdir -p out
	@$(BIN)/cyclonedx-py requirements requirements/runtime.lock --pyproject pyproject.toml --short-PURLs --output-reproducible --of JSON -o out/sbom.json
	@$(BIN)/cyclonedx-py requirements requirements/guest.lock --pyproject pyproject.toml --short-PURLs --output-reproducible --of JSON -o out/sbom-guest.json
	@$(BIN)/cyclonedx-py requirements requirements/kbs.lock --pyproject pyproject.toml --short-PURLs --output-reproducible --of JSON -o out/sbom-kbs.json
	@$(BIN)/cyclonedx-py requirements requirements/node.lock --pyproject pyproject.toml --short-PURLs --output-reproducible --of JSON -o out/sbom-node.json
	@echo out/sbom.json out/sbom-guest.json out/sbom-kbs.json out/sbom-node.json

dev: $(VENV)/.dev

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kata-gpu needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements/runtime.lock pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements/runtime.lock
	$(BIN)/pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

$(VENV)/.dev: requirements/dev.lock $(VENV)/.runtime
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements/dev.lock
	@touch $@

proto: $(VENV)/.dev ## Generate the gRPC stubs from kata_gpu/dra/proto and attestation/service/proto
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/python -m grpc_tools.protoc -Ikata_gpu/dra/_pb=kata_gpu/dra/proto \
		--python_out=. --grpc_python_out=. --mypy_out=quiet:. --mypy_grpc_out=quiet:. kata_gpu/dra/proto/*.proto
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/python -m grpc_tools.protoc -Iattestation/service/_pb=attestation/service/proto \
		--python_out=. --grpc_python_out=. --mypy_out=quiet:. --mypy_grpc_out=quiet:. attestation/service/proto/*.proto

lock: $(VENV)/.dev ## Renew the hash-locked requirements (names no index host)
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate pyproject.toml requirements/build.in -o requirements/runtime.lock
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --extra dev pyproject.toml requirements/build.in -c requirements/runtime.lock -o requirements/dev.lock
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate requirements/guest.in -c requirements/runtime.lock -o requirements/guest.lock
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate requirements/kbs.in -c requirements/runtime.lock -o requirements/kbs.lock
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate requirements/node.in -c requirements/runtime.lock -o requirements/node.lock
	echo 'sev-snp-measure==0.0.13' | $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate - -o requirements/sev-snp-measure.lock
	echo 'nv-attestation-sdk==2.7.3' | $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate - -o requirements/peers.lock

clean: ## Remove everything that can be made again
	rm -rf $(VENV) .cache build dist out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .grimp_cache
