# Common development tasks. `scripts/tools` first makes sure that the required tools are installed, then runs
# the command. Environment variables (DATABASE_URL, PG_BIN_DIR, RUST_LOG…) are passed through unchanged.

with := scripts/tools

# The secrets of docker-compose.yml. They deliberately have no defaults.
secrets := POSTGRES_PASSWORD OWNER_PASSWORD BRIDGE_PASSWORD TIDINGS_JWT_SECRET

deny := cargo deny --log-level error check --hide-inclusion-graph licenses bans sources

# All tests. Those that measure run separately from the others.
tests := cargo test --locked --workspace; cargo test --locked --test attacks

# Builds and tests the npm package.
client := cargo build --locked; \
    export TIDINGS_BRIDGE_BINARY="$${CARGO_TARGET_DIR:-$$PWD/target}/debug/tidings"; \
    cd clients/js; \
    npm ci --silent --no-audit --no-fund --ignore-scripts; \
    npm run build; \
    npm test; \
    npm run test:browser

binary := env TIDINGS_BINARY="$${TIDINGS_BINARY:-$${CARGO_TARGET_DIR:-$$PWD/target}/debug/tidings}"

# Tests mostly wait, so several run per core.
export RUST_TEST_THREADS ?= 6

.DEFAULT_GOAL := help
.PHONY: help dev test test-newest test-on attacks recipes clients clients-quick client client-quick django django-quick \
    node example-django example-node bench bench-peers reliability model doorbell alerts soak upgrade docker dist \
    dist-test lint fmt compose-check deny audit clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Each step replaces the previous process, so that the service is make's own child: Ctrl-C and SIGTERM
# reach it, and make waits until it has closed its connections.
dev: ## build and start everything on this machine: PostgreSQL, the bridge, the demo page
	@scripts/ports $(ARGS)
	@$(with) rust postgres -- sh -c 'cargo build --locked && exec cargo run --quiet --locked -- dev $(ARGS)'

test: ## run every check: formatting, licences, lints, docs, and the tests with a real PostgreSQL and two browsers
	@$(with) rust lint actionlint deny postgres nats pgbouncer shell nginx caddy haproxy chromium firefox -- sh -exc ' \
	    cargo fmt --all --check; \
	    actionlint; \
	    $(deny); \
	    cargo clippy --workspace --all-targets --test attacks --test clients --locked -- -D warnings; \
	    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --locked --quiet; \
	    $(tests)'

# Without the attacks, which measure the bridge and hardly use the database.
test-newest: ## run the tests with the newest PostgreSQL available
	@$(with) rust newest-postgres nats pgbouncer shell nginx caddy haproxy chromium firefox -- \
	    cargo test --locked --workspace

# 15 is Debian's release, 18 the newest. About five minutes each.
test-on: ## run the tests with PostgreSQL 14, 16 and 17, or with PG=14 only
	@for release in $(or $(PG),14 16 17); do \
	    $(with) rust "postgres-$$release" nats pgbouncer shell nginx caddy haproxy chromium firefox -- \
	        sh -exc '$(tests)' || exit; \
	done

# No other test runs at the same time, because these measure how attacks affect other clients.
attacks: ## attack the bridge, and measure how other clients are affected
	@$(with) rust postgres -- cargo test --locked --test attacks

# First installs the dependencies, from Debian's packages and into target/recipes. Runs no other tests.
recipes: ## run the code in docs/recipes, each page with its framework, and form submissions in browsers
	@$(with) rust postgres nginx caddy chromium firefox recipes -- sh -exc ' \
	    scripts/recipes install; \
	    cargo test --locked --test bridge -- --include-ignored recipes::'

# About fifteen minutes, with all clients in tests/clients/roster.rs, which are most of the libraries that
# read event streams, or with CLIENTS=firefox,httpx-sse. Failures are printed with the seed that repeats the
# cuts (TIDINGS_CLIENTS_SEED).
clients: ## run real clients through proxies that cut connections; write the losses to docs/clients.md
	@export TIDINGS_CLIENTS="$(CLIENTS)" TIDINGS_CLIENTS_WRITE="$(if $(CLIENTS),,docs/clients.md)"; \
	    $(with) rust postgres chromium firefox clients -- sh -exc ' \
	    scripts/clients install; \
	    cargo test --locked --test clients -- --nocapture'

# For .ci/run: about a minute.
clients-quick: ## the same with both browsers and three libraries, and fewer cuts
	@export TIDINGS_CLIENTS=quick TIDINGS_CLIENTS_STREAMS=10 TIDINGS_CLIENTS_CUTS=6; \
	    $(with) rust postgres chromium firefox clients -- sh -exc ' \
	    scripts/clients install node python; \
	    cargo test --locked --test clients -- --nocapture'

# About four minutes, most of them with browsers. A failure of the test with 10,000 rows is printed with the seed
# that repeats it (TIDINGS_CLIENT_SEED).
client: ## build and test the npm package, in Node.js, and in Chromium and Firefox with a real bridge
	@$(with) rust postgres chromium firefox clients -- sh -exc '$(client)'

# For .ci/run: about a minute.
client-quick: ## the same in Chromium only, and with fewer rows
	@export TIDINGS_CLIENT_ROWS=2000 FIREFOX=; \
	    $(with) rust postgres chromium clients -- sh -exc '$(client)'

# First installs both versions into target/django. About three minutes. With TIDINGS_PICTURE=$PWD/docs/images/bell.png,
# it also takes this picture.
django: ## test the package for Django and its example, with the oldest and the newest Django, and Chromium
	@$(with) rust postgres chromium clients -- sh -exc 'cargo build --locked; $(binary) clients/django/test'

# For .ci/run: about a minute.
django-quick: ## the same with the newest Django
	@$(with) rust postgres chromium clients -- sh -exc 'cargo build --locked; $(binary) clients/django/test newest'

example-django: ## start a Django project with a login, a form and a bell, at port 8000 or ARGS=9000
	@$(with) rust postgres clients -- sh -c 'cargo build --locked && exec $(binary) scripts/private-postgres examples/django/run $(ARGS)'

# Half a minute, after the first time.
node: ## test the example for Node and the steps of its recipe, in Chromium
	@$(with) rust postgres chromium clients shell -- sh -exc ' \
	    cargo build --locked; \
	    export PATH="$${CARGO_TARGET_DIR:-$$PWD/target}/debug:$$PATH"; \
	    scripts/build-client; \
	    cd examples/node; \
	    npm ci --silent --no-audit --no-fund --ignore-scripts; \
	    npm test'

example-node: ## start the example for Node, with the bridge and a PostgreSQL: http://localhost:3000
	@$(with) rust postgres clients -- sh -c ' \
	    cargo build --quiet --locked && \
	    export PATH="$${CARGO_TARGET_DIR:-$$PWD/target}/debug:$$PATH" && \
	    exec scripts/private-postgres examples/node/run'

# About half an hour. `make bench ARGS=--quick` takes two; `make bench ARGS=latency` runs one section. Both
# of these only print their figures.
bench: ## measure writers, latency, flood, fan-out, memory, storms, growth, pruning, topics and clusters; write docs/benchmarks
	@$(with) rust postgres nats -- \
	    cargo bench --locked --bench load -- $(or $(ARGS),--out docs/benchmarks)

soak: ## connect and disconnect clients for TIDINGS_SOAK_SECONDS (600); memory, files and threads must not grow
	@export TIDINGS_SOAK_SECONDS="$${TIDINGS_SOAK_SECONDS:-600}"; \
	    $(with) rust postgres -- \
	    cargo test --locked --test bridge -- --nocapture faults::soak

# From the newest tag before this commit, or FROM=v0.1.0, or any commit. A few minutes.
upgrade: ## upgrade bridges from an earlier release to this one under load, and count lost rows
	@$(with) rust postgres -- scripts/upgrade $(FROM)

# A release build, which takes several minutes.
dist: ## build a release into target/dist: wheel, Debian package, tarball, SBOM, checksums
	@$(with) rust dist -- scripts/dist

# Requires root. First makes two bare Debian systems, in target/dist-test.
dist-test: ## install and start everything in target/dist in bare systems, and remove it again
	@$(with) postgres dist-test -- scripts/dist-test $(ARGS)

# As root, on Debian. A few minutes the first time. FROM=v0.1.0, or any commit, also upgrades that release's
# containers.
docker: ## build the image, and start docker-compose.yml, with an engine of its own
	@$(with) rust docker -- scripts/docker $(FROM)

reliability: ## inject every fault, and write the lost rows (none) to docs/reliability.md
	@$(with) rust postgres nats pgbouncer -- scripts/reliability

# Failures are printed with the seed that repeats them. Takes most of an hour.
model: ## run random programs against the bridge, TIDINGS_MODEL_PROGRAMS=5000 of each kind
	@$(with) rust postgres nats -- sh -exc ' \
	    export TIDINGS_MODEL_PROGRAMS="$${TIDINGS_MODEL_PROGRAMS:-5000}"; \
	    cargo test --locked --test bridge -- --nocapture model::'

# A few minutes.
doorbell: ## check the model of the doorbell, and that each deliberate mistake makes it fail
	@$(with) spin -- scripts/doorbell

alerts: ## check docs/operations/alerts.yml with promtool, if it is installed
	@scripts/alerts

# First installs the alternatives into target/peers (scripts/bench-peers).
bench-peers: ## measure Tidings against the alternatives; write docs/benchmarks/peers.*
	@$(with) rust postgres -- \
	    cargo bench --locked --bench load -- --peers $(or $(ARGS),--out docs/benchmarks)

lint: ## check formatting, lints, the workflows and the documentation's links
	@$(with) rust lint actionlint -- sh -exc ' \
	    actionlint; \
	    cargo fmt --all --check; \
	    cargo clippy --workspace --all-targets --test attacks --test clients --locked -- -D warnings; \
	    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --locked --quiet'

fmt: ## format the code
	@$(with) rust lint -- cargo fmt --all

# The file must be rejected if a secret is empty. (Empty rather than unset, because an .env file could supply
# an unset one.)
compose-check: ## check docker-compose.yml (needs no container engine)
	@$(with) compose -- sh -ec ' \
	    export $(addsuffix =checked,$(secrets)); \
	    $$COMPOSE config -q; \
	    NATS_PASSWORD=checked $$COMPOSE --profile cluster config -q; \
	    for secret in $(secrets); do \
	        env "$$secret=" $$COMPOSE config -q 2>&1 | \
	            grep -q "$$secret must be set" || \
	            { echo "docker-compose.yml does not insist on $$secret" >&2; exit 1; }; \
	    done'
	@echo "docker-compose.yml is in order"

deny: ## check the licences and sources of the dependencies
	@$(with) rust deny -- $(deny)

# The database of advisories is downloaded. If that fails, the target fails, since nothing was checked.
audit: ## check the dependencies for known vulnerabilities
	@$(with) rust deny -- sh -ec ' \
	    if ! cargo deny --log-level error fetch db; then \
	        echo "not checked: the database of advisories is out of reach" >&2; exit 1; \
	    fi; \
	    cargo deny check --disable-fetch advisories'

clean: ## remove everything that was built or unpacked here
	@$(with) rust -- cargo clean
	@rm -rf target
