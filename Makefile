# The only list of commands. `make` alone prints it.

PG ?= 15
SETUP := tests/setup
PREFIX := $(shell $(SETUP)/prefix.sh where)
PREFIX_PG_CONFIG := $(PREFIX)/usr/lib/postgresql/$(PG)/bin/pg_config
CARGO_PGRX_VERSION := $(shell sed -nE 's/^pgrx = "=([^"]+)"$$/\1/p' Cargo.toml)
VERSION := $(shell sed -nE '/^\[workspace.package\]/,/^\[/s/^version = "([^"]+)"$$/\1/p' Cargo.toml)
CARGO_DENY_VERSION := 0.20.2
CARGO_FUZZ_VERSION := 0.13.2
DEBIAN_SUITE := $(shell . /etc/os-release 2>/dev/null && echo $$VERSION_CODENAME)
DEBIAN := $(PREFIX)/debian-$(DEBIAN_SUITE)
TARGET := $(or $(CARGO_TARGET_DIR),target)

# pgrx builds against the private PostgreSQL and keeps its files beside it, never in ~/.pgrx. Every cargo call that
# builds the extension says the same here, or cargo would build pgrx anew on each change of mind.
export ORBHOOK_PREFIX := $(PREFIX)
export PG
export PGRX_HOME := $(PREFIX)/pgrx-$(PG)
export PGRX_PG_CONFIG_PATH := $(PREFIX_PG_CONFIG)

# PostgreSQL 15 is Debian 12's. A major that this machine has not got is tried in a Debian that has it: the extension is
# built there, the programs here, and whatever needs a server runs there.
ifeq ($(or $(filter 15,$(PG)),$(wildcard /usr/lib/postgresql/$(PG))),)
ELSEWHERE := $(abspath $(SETUP))/elsewhere.sh $(PG)
RUNNER := --config "target.'cfg(unix)'.runner='$(ELSEWHERE)'"
endif

# Tests and demo use the release profile: one build serves both, and the SQL calls run as fast as they will.
CARGO_TEST := cargo test --release $(RUNNER)
CAMPAIGN := --package orbhook-sidecar --package orbhook-tests --features orbhook-sidecar/campaign,orbhook-tests/campaign \
    --bin orbhook-campaign --bin campaign
BUILD_PROGRAMS := cargo build --release --package orbhook-sidecar --package orbhook-tests --bins

# $(call install_extension,PG_CONFIG)
install_extension = pgrx=$$($(SETUP)/cargo_tool.sh cargo-pgrx $(CARGO_PGRX_VERSION)) && $(SETUP)/extension.sh $1 "$$pgrx"

.DEFAULT_GOAL := help
.PHONY: help demo run test test-extension test-suite test-root model fuzz hostile-sql bench campaign campaign-planted check-providers lint lint-sql deb install extension env packages prefix clean-prefix

help: ## this list
	@echo "usage: make TARGET [PG=$(PG)]"
	@echo
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F '|' '{ printf "  %-16s %s\n", $$1, $$2 }'

demo: extension ## build everything, then show events becoming webhooks
	$(BUILD_PROGRAMS)
	$(TARGET)/release/demo

run: ## keep an instance of the demo in the foreground; with DATABASE_URL: run the sidecar against that database
ifdef DATABASE_URL
	$(BUILD_PROGRAMS)
	$(TARGET)/release/orbhook run
else
	@$(MAKE) --no-print-directory extension
	$(BUILD_PROGRAMS)
	$(TARGET)/release/demo --stay
endif

test: extension ## all tests: each crate's own, then extension, sidecar and receiver together (PG=17 or 18: as root)
	$(BUILD_PROGRAMS)
	$(CARGO_TEST) --package orbhook-providers
	$(CARGO_TEST) --package orbhook-address --package orbhook-seal
	$(CARGO_TEST) --package orbhook-model -- --show-output
	$(MAKE) --no-print-directory test-extension
	$(MAKE) --no-print-directory test-suite
	cargo build --release $(CAMPAIGN)
	$(CARGO_TEST) --package orbhook-tests --features orbhook-sidecar/campaign,orbhook-tests/campaign --bin campaign
	$(ELSEWHERE) $(TARGET)/release/campaign --minutes 3 --seed 1

test-suite: extension ## those of them that are about extension, sidecar and receiver together
	$(BUILD_PROGRAMS)
	$(CARGO_TEST) --package orbhook-sidecar --package orbhook-tests

# Built outside the namespace: there is no way out of it.
test-root: deb ## tests that need root: what is dialled, watched in a network namespace of their own; packages on a clean Debian
	$(CARGO_TEST) --package orbhook-tests --test root --no-run
	tests/root/debian.sh make $(DEBIAN) $(DEBIAN_SUITE) postgresql-$(PG) adduser ca-certificates systemd procps
	rm -rf $(DEBIAN)/packages
	mkdir $(DEBIAN)/packages
	cp -r $(TARGET)/deb $(DEBIAN)/packages/this
	$(SETUP)/deb.sh $(PG) $(PREFIX) $(TARGET)/release/orbhook 0.0.1 $(DEBIAN)/packages/older
	ORBHOOK_DEBIAN=$(DEBIAN) tests/root/namespace.sh $(CARGO_TEST) --offline --package orbhook-tests --test root

FAULTS ?= 2
model: ## every order of steps of the doorbell and of claim, lease, settle, with FAULTS=2 faults at any of them (make test: 1)
	cargo run --release --package orbhook-model --bin explore $(FAULTS)

SECONDS_EACH = $(or $(filter-out 0,$(SECONDS)),60)
fuzz: ## every fuzz target for SECONDS=60 each: rendering, judging, Retry-After, configuration and headers, address policy
	fuzz=$$($(SETUP)/cargo_tool.sh cargo-fuzz $(CARGO_FUZZ_VERSION)) && $(SETUP)/fuzz.sh "$$fuzz" $(SECONDS_EACH)

COUNT ?= 1000000
hostile-sql: extension ## COUNT=1000000 hostile statements against the SQL calls, into tests/bench/RESULTS.md (make test: 20,000)
	$(BUILD_PROGRAMS)
	HOSTILE_SQL_COUNT=$(COUNT) $(TARGET)/release/bench hostile-sql

bench: extension ## figures against their baselines, into tests/bench/RESULTS.md (10 minutes); make bench ONLY=growth (90 minutes), ONLY=policy, ONLY=deliver… for one section
	$(BUILD_PROGRAMS)
	$(if $(filter 0,$(shell id -u)),tests/root/namespace.sh) $(TARGET)/release/bench $(ONLY)

campaign: extension ## kill and restart everything at random and prove that nothing is lost: make campaign MINUTES=60 SEED=1 (RUN=million, sigterms, orphans, resume)
	cargo build --release $(CAMPAIGN)
	$(TARGET)/release/campaign --record $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) $(if $(RUN),--run $(RUN))

campaign-planted: extension ## the campaign against bugs made on purpose, each of which it must notice
	cargo build --release $(CAMPAIGN)
	$(TARGET)/release/campaign --planted $(if $(SEED),--seed $(SEED))

check-providers: ## show every rendered body to the providers' own published models (needs python3 and npm)
	tests/providers/check.sh

lint: prefix ## formatting, clippy with warnings as errors, dependencies (bans, licences, sources)
	cargo fmt --all --check
	cargo clippy --all-targets --package orbhook --no-default-features --features pg$(PG) -- -D warnings
	cargo clippy --all-targets --workspace --exclude orbhook -- -D warnings
	cargo clippy $(CAMPAIGN) -- -D warnings
	deny=$$(command -v cargo-deny || $(SETUP)/cargo_tool.sh cargo-deny $(CARGO_DENY_VERSION)) && \
	    "$$deny" --config .deny.toml check bans licenses sources

lint-sql: extension ## pgspot on the generated install script: nothing an attacker could put into the search path (needs python3 with pip)
	$(SETUP)/pgspot.sh $(PREFIX)/usr/share/postgresql/$(PG)/extension/orbhook--$(VERSION).sql

deb: extension ## Debian packages of the extension (for PG=15) and of the sidecar, into target/deb
	cargo build --release --package orbhook-sidecar --package orbhook-tests --bins
	rm -rf $(TARGET)/deb
	$(SETUP)/deb.sh $(PG) $(PREFIX) $(TARGET)/release/orbhook $(VERSION) $(TARGET)/deb

install: ## install into a real server: make install PG_CONFIG=/usr/bin/pg_config; also builds target/release/orbhook
ifndef PG_CONFIG
	@echo "Say which server: make install PG_CONFIG=/path/to/pg_config" >&2; exit 1
else
	@$(SETUP)/packages.sh
	cargo build --release --package orbhook-sidecar
	$(call install_extension,$(PG_CONFIG))
	@echo "Installed. In each database: CREATE EXTENSION orbhook; then beside the server: $(TARGET)/release/orbhook run"
endif

ifdef ELSEWHERE
extension test-extension:
	@$(SETUP)/cargo_tool.sh cargo-pgrx $(CARGO_PGRX_VERSION) >/dev/null
	cargo fetch --locked
	$(ELSEWHERE) make --no-print-directory $@
else
extension: prefix ## build the extension (release) and install it into the private PostgreSQL
	$(call install_extension,$(PREFIX_PG_CONFIG))

test-extension: prefix ## the extension's own tests, those of a part without a server
	$(CARGO_TEST) --package orbhook --no-default-features --features pg$(PG)
endif

env: ## print what cargo needs to build the extension by hand: eval "$(make env)"
	@echo 'export ORBHOOK_PREFIX=$(PREFIX) PG=$(PG) PGRX_HOME=$(PGRX_HOME) PGRX_PG_CONFIG_PATH=$(PGRX_PG_CONFIG_PATH)'

packages: ## check for the Debian packages; as root, install what is missing
	@$(SETUP)/packages.sh $(PG)

prefix: packages ## make the private PostgreSQL (a directory in /var/tmp named after this clone)
	@$(SETUP)/prefix.sh make $(PG)

clean-prefix: ## take the private PostgreSQL away again
	@$(SETUP)/prefix.sh clean
