# The two commands that do everything: `make demo` and `make test`.

VENV := target/venv
NODE := target/node
PACKAGES := softhsm2 opensc openssl python3-venv faketime sqlite3 curl prometheus
CARGO ?= cargo

# How near the daemon comes to its HSM and gRPC; BENCH=--full takes 1,000,000
# keys and 10,000,000 events, BENCH=--short only shows that it runs, with what
# `make test` has built.
BENCH ?=
BENCH_PROFILE := $(if $(findstring --short,$(BENCH)),dev,release)

.PHONY: build demo test bench lint deny soak test-vendors vendors rust packages venv node clean

build: packages
	$(CARGO) build

# Runs the main job on SoftHSM2, from nothing, and shows the events.
demo: build
	deploy/demo.sh

test: packages venv node
	$(CARGO) test

bench: packages
	$(CARGO) build --profile $(BENCH_PROFILE) --example pkcs11_shim
	$(CARGO) bench --profile $(BENCH_PROFILE) --bench speed -- $(BENCH)

# The tests on another vendor's module; `make test` runs them too where it is built,
# or KRYOPTIC_LIBRARY names one that was kept.
test-vendors: packages vendors
	$(CARGO) test --test it -- vendors::

# kryoptic, with an OpenSSL of its own: ten minutes, once.
vendors:
	tests/vendors/build.sh

# AWS's SDK for Rust, which `make test` runs too where it is built.
rust:
	CARGO_TARGET_DIR=target/rust $(CARGO) build --locked --manifest-path tests/rust/Cargo.toml

# The tests of crashes, of churn and of HSMs that fail under load, many more
# rounds; what the recoveries took is printed.
soak: packages venv
	STRONGROOM_SOAK_ROUNDS=50 $(CARGO) test --test it -- kill cancel churn
	STRONGROOM_SOAK_ROUNDS=10 $(CARGO) test --test it -- exhibition load --nocapture --test-threads 1

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings

# Licences, sources and duplicates; advisories need a copy of RustSec's database.
deny:
	command -v cargo-deny >/dev/null || $(CARGO) install --locked cargo-deny
	$(CARGO) deny check bans licenses sources

# Debian's packages; on another system, install their like by hand.
packages:
	@if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  missing=$$(for package in $(PACKAGES); do dpkg -s $$package >/dev/null 2>&1 || echo $$package; done); \
	  command -v npm >/dev/null || missing="$$missing nodejs npm"; \
	  [ -z "$$missing" ] || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$missing; }; \
	fi

# PyPI's packages for the tests' clients in another language.
venv: $(VENV)/.requirements

$(VENV)/.requirements: tests/python/requirements.txt
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r tests/python/requirements.txt
	cp tests/python/requirements.txt $@

# npm's package for the tests' client in JavaScript.
node: $(NODE)/.package

$(NODE)/.package: tests/node/package.json
	mkdir -p $(NODE)
	cp tests/node/package.json $(NODE)/
	cd $(NODE) && npm install --silent --no-audit --no-fund --no-package-lock
	touch $@

clean:
	$(CARGO) clean
