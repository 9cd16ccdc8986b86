# teekms. `make help` lists the targets; CI calls the same ones (.ci/run).
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
REVISION ?= $(shell git rev-parse --short=20 HEAD 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.revision=$(REVISION)
PREFIX  ?= /usr/local
TOOLS   := $(CURDIR)/.bin
MODULES := . gen e2e
FUZZTIME ?= 20s

export CGO_ENABLED ?= 0
# The linter's cache keeps the paths of the clone that filled it; each clone has its own.
export GOLANGCI_LINT_CACHE := $(TOOLS)/golangci-cache

.PHONY: help build install test tpmsim crash conformance race lint fmt gen gen-check bench fuzz cover demo deps tools clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

build: ## build static binaries into bin/
	go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

install: build ## install the binaries into $(PREFIX)/bin, manual pages beside them
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 0755 bin/dstack-kms bin/dstack-onboard bin/kmsctl $(DESTDIR)$(PREFIX)/bin/
	install -m 0644 docs/man/*.1 $(DESTDIR)$(PREFIX)/share/man/man1/

deps: ## install with apt what the tests need and is missing
	scripts/deps

test: deps ## run every test of every module
	go vet work
	# Not from the cache: e2e runs programs that go test does not know of.
	go test -count=1 -timeout 30m work
	$(MAKE) --no-print-directory tpmsim crash

tpmsim: deps ## run the TPM seal against the reference TPM, compiled in (needs a C compiler)
	GOWORK=off CGO_ENABLED=1 go test -C tools/tpmsim -count=1 ./...

crash: ## crash every write of the key directory at every durable step, kill processes at every step, print the counts
	go test -count=1 -v -run '^(TestNothingHalfDone|TestKilled)$$' ./internal/keys/keystore | grep -v '^ *---\|^==='

conformance: deps ## put every database through the storage suite and the kill loops, print the counts
	go test -count=1 -v -run '^(TestConformance|TestKilled)$$' ./internal/storage/sqldb ./internal/storage/redisdb | grep -oE '(conformance|killed): .*|^(ok|FAIL).*'

race: ## run the unit tests under the race detector (needs a C compiler)
	CGO_ENABLED=1 go test -race -timeout 40m ./...

tools: $(TOOLS)/golangci-lint $(TOOLS)/buf ## build the pinned developer tools into .bin/

$(TOOLS)/golangci-lint: tools/lint/go.sum
	GOWORK=off GOBIN=$(TOOLS) go install -C tools/lint tool
	@touch $@

$(TOOLS)/buf: tools/buf/go.sum
	GOWORK=off GOBIN=$(TOOLS) go install -C tools/buf tool
	@touch $@

lint: $(TOOLS)/golangci-lint $(TOOLS)/buf ## lint Go and proto files
	$(TOOLS)/buf lint
	for m in . e2e; do (cd $$m && $(TOOLS)/golangci-lint run ./...); done

fmt: $(TOOLS)/golangci-lint $(TOOLS)/buf ## format Go and proto files
	$(TOOLS)/gofumpt -w $$(git ls-files '*.go' | grep -v '^gen/')
	$(TOOLS)/buf format -w

gen: $(TOOLS)/buf ## regenerate gen/ from proto/
	$(TOOLS)/buf generate

gen-check: gen ## fail when gen/ is not what proto/ says
	git diff --exit-code -- gen
	@test -z "$$(git status --porcelain -- gen)"

bench: ## run the benchmarks of docs/performance.md
	go test -run '^$$' -bench . -benchmem -cpu 1 ./...
	go test -C e2e -run '^$$' -bench . -benchtime 1x .

fuzz: ## fuzz every decoder for FUZZTIME each
	scripts/fuzz $(FUZZTIME)

cover: ## write the coverage of the unit tests to cover.out
	go test -coverprofile=cover.out -coverpkg=./cmd/...,./internal/...,./services/... ./...
	go tool cover -func=cover.out | tail -1

demo: build ## bootstrap, verify and serve a KMS in a simulated trust domain (DEMOFLAGS=--seal: with sealed keys)
	bin/kmsctl demo $(DEMOFLAGS)

clean: ## remove what was built
	rm -rf bin cover.out
