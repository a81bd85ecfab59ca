# Two commands on a fresh machine: `make demo` and `make test`. Each does its own set-up.
# As root on Debian, set-up installs what is missing and makes two plain users; the product,
# its tests and the demo then run as the first of them. Elsewhere everything runs as you,
# and what is missing is named and skipped visibly.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
BUILD := .build
BIN := $(BUILD)/launcher
AS := scripts/as-user
GOTEST := go test -exec "$(CURDIR)/$(AS)"
export LAUNCHER_TEST_BINARY := $(CURDIR)/$(BIN)
export GOTOOLCHAIN := local
# go-nvml wraps calls that newer headers call deprecated; keep cgo builds quiet and quick.
export CGO_CFLAGS := -O1 -g0 -Wno-deprecated-declarations
UNIT := $(shell go list ./... 2>/dev/null | grep -v '^launcher/launcher$$')

.PHONY: help setup build test race unit unit-full e2e root fuzz bench lint demo check long release clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

setup: ## install what is missing, make .venv (numpy, msgpack, cloudpickle, pinned) and the test users
	scripts/setup

build: ## build .build/launcher (static)
	@mkdir -p $(BUILD)
	CGO_ENABLED=0 go build -trimpath -o $(BIN) ./launcher

test: setup build ## everything a change must pass: lint, unit under race, simulation, local end to end
	scripts/timed 900 "make test" $(MAKE) --no-print-directory lint race unit-full root e2e

lint: ## formatting, vet, types of the Python SDK, the rules of the tree
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "gofmt: $$(gofmt -l $$(git ls-files '*.go'))"; exit 1; }
	go vet ./...
	@if [ -x .venv/bin/mypy ]; then cd python && ../.venv/bin/mypy --strict --python-version 3.9 --cache-dir ../$(BUILD)/mypy -p launcher; \
	else echo "SKIP types of the Python SDK: there is no .venv/bin/mypy (make setup)"; fi
	go test ./internal/lint

unit: setup build ## unit tests without the race detector
	$(GOTEST) $(UNIT)

race: ## unit tests and simulation under the race detector
	$(GOTEST) -race -timeout 480s $(UNIT)

unit-full: ## what the race detector is too slow for: every world size of the collectives, rates of links
	$(GOTEST) -timeout 240s -run '^(TestEveryWorldSize|TestSlowLink)$$' ./collectives

e2e: build ## the command end to end on a local cluster
	$(GOTEST) -timeout 420s ./launcher

root: ## the few tests that need root (cgroups, a second user, a small file system); skips elsewhere
	@if [ "$$(id -u)" = 0 ]; then go test -run '^TestRoot' -timeout 180s $$(git grep -lE '^func TestRoot' -- '*_test.go' | xargs -n1 dirname | sort -u | sed 's|^|./|'); \
	else echo "SKIP root tests: not root"; fi

fuzz: ## each fuzz target for 20 seconds
	scripts/fuzz 20s

bench: build ## launcher's own benchmarks, beside their limits and peers
	$(AS) scripts/bench

bench-ray: setup build ## tasks and objects beside the newest Ray, a table of ratios; ROWS=a,b chooses, 30 minutes at most
	scripts/bench-ray --install
	$(AS) $(CURDIR)/scripts/bench-ray $(ROWS)

demo: setup build ## the main job, end to end, on this machine
	scripts/demo

check: setup build ## every acceptance script; prints a table and the minutes it took
	scripts/check

long: setup build ## soaks: random kills for ten minutes under jobs, five under tasks; long fuzzing
	scripts/long

release: ## static linux amd64 and arm64 binaries, the client half for macOS, checksums, in dist/
	scripts/release

clean: ## remove what make made
	rm -rf $(BUILD) dist .demo
