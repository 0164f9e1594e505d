# The usual errands. `scripts/tools` first sees to it that what they need is there, then runs
# them; what is set in the environment (DATABASE_URL, PG_BIN_DIR, RUST_LOG…) reaches them
# untouched.

with := scripts/tools

# The secrets of docker-compose.yml, which have no defaults on purpose.
secrets := POSTGRES_PASSWORD OWNER_PASSWORD BRIDGE_PASSWORD TIDINGS_JWT_SECRET

deny := cargo deny --log-level error check --hide-inclusion-graph licenses bans sources

# Every test, those that measure apart from the others.
tests := cargo test --locked --workspace; cargo test --locked --test attacks

# Tests wait far more than they compute: several a core.
export RUST_TEST_THREADS ?= 6

.DEFAULT_GOAL := help
.PHONY: help dev test test-newest test-on attacks recipes clients clients-quick bench bench-peers reliability model doorbell alerts soak upgrade lint fmt compose-check deny audit clean

help: ## lists the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Each step replaces the one before, so that the service is make's own child: Ctrl-C and
# SIGTERM reach it, and make waits until it has closed its connections.
dev: ## builds and starts everything on this machine: PostgreSQL, the bridge, the demo page
	@scripts/ports $(ARGS)
	@$(with) rust postgres -- sh -c 'cargo build --locked && exec cargo run --quiet --locked -- dev $(ARGS)'

test: ## runs every check: formatting, licences, lints, docs, and the tests with a real PostgreSQL and two browsers
	@$(with) rust lint deny postgres pgbouncer shell nginx caddy haproxy chromium firefox -- sh -exc ' \
	    cargo fmt --all --check; \
	    $(deny); \
	    cargo clippy --workspace --all-targets --test attacks --test clients --locked -- -D warnings; \
	    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet; \
	    $(tests)'

test-newest: ## runs the tests once more, with the newest PostgreSQL that can be had
	@$(with) rust newest-postgres pgbouncer shell nginx caddy haproxy chromium firefox -- sh -exc '$(tests)'

# 15 is Debian's, and 18 the newest. Five minutes each.
test-on: ## runs the tests with PostgreSQL 14, 16 and 17, or with PG=14 alone
	@for release in $(or $(PG),14 16 17); do \
	    $(with) rust "postgres-$$release" pgbouncer shell nginx caddy haproxy chromium firefox -- \
	        sh -exc '$(tests)' || exit; \
	done

# What others notice of an attack is measured, so no other test runs beside it.
attacks: ## attacks the bridge, and measures what other clients notice
	@$(with) rust postgres -- cargo test --locked --test attacks

# What they need is fetched first: from Debian's packages, and into target/recipes. Other tests
# are not run.
recipes: ## runs the code of docs/recipes, each page with its framework, and the flow of forms in browsers
	@$(with) rust postgres nginx chromium firefox recipes -- sh -exc ' \
	    scripts/recipes install; \
	    cargo test --locked --test bridge -- --include-ignored recipes::'

# Some fifteen minutes, with most of the libraries that read event streams: all that is in
# tests/clients/roster.rs, or CLIENTS=firefox,httpx-sse. What fails is printed with the seed that
# makes the same cuts (TIDINGS_CLIENTS_SEED).
clients: ## runs real clients through proxies that cut, and writes what was lost into docs/clients.md
	@export TIDINGS_CLIENTS="$(CLIENTS)" TIDINGS_CLIENTS_WRITE="$(if $(CLIENTS),,docs/clients.md)"; \
	    $(with) rust postgres chromium firefox clients -- sh -exc ' \
	    scripts/clients install; \
	    cargo test --locked --test clients -- --nocapture'

# For .ci/run: a minute.
clients-quick: ## the same with both browsers and three libraries, and fewer cuts
	@export TIDINGS_CLIENTS=quick TIDINGS_CLIENTS_STREAMS=10 TIDINGS_CLIENTS_CUTS=6; \
	    $(with) rust postgres chromium firefox clients -- sh -exc ' \
	    scripts/clients install node python; \
	    cargo test --locked --test clients -- --nocapture'

# Some twenty minutes; `make bench ARGS=--quick` two, `make bench ARGS=latency` one section. The
# figures of the latter two go to the screen alone.
bench: ## measures writers, latency, flood, fan-out, memory, storms, growth and pruning, into docs/benchmarks
	@$(with) rust postgres -- \
	    cargo bench --locked --bench load -- $(or $(ARGS),--out docs/benchmarks)

soak: ## has clients come and go for TIDINGS_SOAK_SECONDS (600): memory, files and threads stay
	@export TIDINGS_SOAK_SECONDS="$${TIDINGS_SOAK_SECONDS:-600}"; \
	    $(with) rust postgres -- \
	    cargo test --locked --test bridge -- --nocapture faults::soak

# The newest tag before this commit, or FROM=v0.1.0, or any commit. Some minutes.
upgrade: ## replaces bridges of an earlier release by this one under load, and counts what is lost
	@$(with) rust postgres -- scripts/upgrade $(FROM)

reliability: ## breaks everything, and writes what was lost (nothing) into docs/reliability.md
	@$(with) rust postgres pgbouncer -- scripts/reliability

# What fails is printed with the seed that repeats it. Most of an hour.
model: ## plays random programs against the bridge, TIDINGS_MODEL_PROGRAMS=5000 of each kind
	@$(with) rust postgres -- sh -exc ' \
	    export TIDINGS_MODEL_PROGRAMS="$${TIDINGS_MODEL_PROGRAMS:-5000}"; \
	    cargo test --locked --test bridge -- --nocapture model::'

# Some minutes.
doorbell: ## checks the model of the doorbell, and that each mistake makes it fail
	@$(with) spin -- scripts/doorbell

alerts: ## checks docs/operations/alerts.yml with promtool, where that can be had
	@scripts/alerts

# What the peers need is fetched into target/peers first (scripts/bench-peers).
bench-peers: ## measures Tidings beside what users would pick instead, into docs/benchmarks/peers.*
	@$(with) rust postgres -- \
	    cargo bench --locked --bench load -- --peers $(or $(ARGS),--out docs/benchmarks)

lint: ## checks formatting, lints and the documentation's links
	@$(with) rust lint -- sh -exc ' \
	    cargo fmt --all --check; \
	    cargo clippy --workspace --all-targets --test attacks --test clients --locked -- -D warnings; \
	    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet'

fmt: ## formats the code
	@$(with) rust lint -- cargo fmt --all

# It must be refused when one of the secrets is empty (unset would let an .env file speak).
compose-check: ## checks docker-compose.yml, no engine needed
	@$(with) compose -- sh -ec ' \
	    export $(addsuffix =checked,$(secrets)); \
	    $$COMPOSE config -q; \
	    for secret in $(secrets); do \
	        env "$$secret=" $$COMPOSE config -q 2>&1 | \
	            grep -q "$$secret must be set" || \
	            { echo "docker-compose.yml does not insist on $$secret" >&2; exit 1; }; \
	    done'
	@echo "docker-compose.yml is in order"

deny: ## checks the licences and the origin of the dependencies
	@$(with) rust deny -- $(deny)

# Their database comes from the network. Where that is out of reach nothing was checked, which
# is not the same as nothing was found.
audit: ## checks the dependencies for known vulnerabilities
	@$(with) rust deny -- sh -ec ' \
	    if ! cargo deny --log-level error fetch db; then \
	        echo "not checked: the database of advisories is out of reach" >&2; exit 1; \
	    fi; \
	    cargo deny check --disable-fetch advisories'

clean: ## removes everything that was built or unpacked here
	@$(with) rust -- cargo clean
	@rm -rf target
