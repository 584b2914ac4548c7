# Everything here works on a fresh clone: targets install what they need (Debian and Ubuntu) or say what is missing.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO       ?= go
FUZZTIME ?= 10s
BENCH    ?= .
PKG      ?= ./...
VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  := -s -w -X main.version=$(VERSION)
# Modules of tools and tests, whose dependencies are none of the product's.
NESTED   := $(patsubst %/go.mod,%,$(shell git ls-files '*/go.mod' 2>/dev/null))
PRODUCT  := $(GO) build -trimpath -buildvcs=false -tags urfave_cli_no_docs -ldflags '$(LDFLAGS)'
IMAGE    ?= ghcr.io/firsthop/firsthop
# Tests need one architecture only, and packages of two versions: see vm-packages.
ARCHS    ?= amd64 arm64
PACKAGES ?= bin/packages

# The product has no C in it. Only the race detector needs it: see test.
export CGO_ENABLED = 0

##@ Product

.PHONY: build
build: ## bin/firsthop: one static binary (GOARCH=arm64 for the other one)
	$(PRODUCT) -o bin/firsthop ./cmd/firsthop

.PHONY: image
image: ## bin/image: the container image for amd64 and arm64, the same each time, made without a container daemon
	for arch in $(ARCHS); do GOARCH=$$arch $(PRODUCT) -o bin/image/firsthop-$$arch ./cmd/firsthop; done
	cd deploy/build && $(GO) run -buildvcs=false ./image -repository ../.. -out ../../bin/image \
		-name '$(IMAGE)' -version '$(VERSION)' -revision "$$(git rev-parse HEAD)" \
		-source-date-epoch "$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct)}" \
		$(foreach arch,$(ARCHS),-binary $(arch)=../../bin/image/firsthop-$(arch)) \
		-license ../../LICENSE -license ../../bpf/LICENSE-BSD-2-Clause -license ../../bpf/LICENSE-GPL-2.0

.PHONY: packages
packages: ## bin/packages: .deb and .rpm for amd64 and arm64, the same each time
	for arch in $(ARCHS); do GOARCH=$$arch $(PRODUCT) -o $(PACKAGES).in/linux-$$arch/firsthop ./cmd/firsthop; done
	rm -rf $(PACKAGES)
	cd deploy/build && $(GO) run -buildvcs=false ./packages -repository ../.. -arch '$(ARCHS)' \
		-binaries ../../$(PACKAGES).in -out ../../$(PACKAGES) -version '$(VERSION)' -epoch "$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct)}"

# Two versions, for the tests of an upgrade. The builder asks the program for its help, so one must run here.
.PHONY: vm-packages
vm-packages:
	for v in 0.1.0 0.2.0; do \
		$(MAKE) --no-print-directory packages VERSION=v$$v PACKAGES=bin/vm/packages/$$v ARCHS='$(sort amd64 $(shell $(GO) env GOARCH))'; done

# A control plane for the paths with a real API server. Their system may have an older C library than etcd is linked to.
.PHONY: vm-kube
vm-kube: setup-kube
	$(WITH_KUBE) rm -rf bin/vm/kube; mkdir -p bin/vm/kube; \
		cp -L "$$bin"/etcd "$$bin"/kube-apiserver $$(ldd "$$bin"/etcd | grep -o '/[^ ]*\(libc.so.6\|ld-linux-x86-64.so.2\)') bin/vm/kube/

.PHONY: generate
generate: setup-bpf ## compile the BPF programs; the objects are committed, so building needs no clang
	$(GO) generate ./bpf/...

.PHONY: fmt
fmt: setup-bpf ## format Go and C
	gofmt -l -w .
	clang-format-19 -i $$(find bpf -name '*.[ch]')

##@ Tests

.PHONY: demo
demo: setup-demo ## see it work, in 15 seconds, in a network namespace of its own that goes away again; DEMO=-v shows all output
	@echo "Building bin/firsthop and bin/demo; the first time, this takes a minute or two."
	@$(PRODUCT) -v -o bin/ ./cmd/firsthop ./test/demo 2>&1 | .ci/progress
	@$(AS_ROOT) bin/demo -firsthop bin/firsthop $(DEMO)

.PHONY: test
ifeq ($(PKG),./...)
# What ran and what was left out, of all parts of test.
test: export NOTES = $(CURDIR)/.cache/test-notes
test: setup-test build ## every test, with the race detector, as root (by sudo where it must); PKG=./kernel/... for some
	@mkdir -p .cache; rm -f "$$NOTES"
	@echo "Part 1 of 2: what needs no Kubernetes."
	@env -u FIRSTHOP_TEST_KUBE_BIN .ci/test ./...
	@for module in $(filter-out test/kube,$(NESTED)); do MODULE=$$module .ci/test ./...; done
	@echo "Part 2 of 2: what needs a real API server or kube-proxy, which are built first, once."
	@$(MAKE) --no-print-directory test-kube
	@.cache/test-report -total -notes "$$NOTES"
	@echo "make test-vm, test-boot and test-all run what this machine cannot: see docs/testing.md."
else
test: setup-test build
	.ci/test $(PKG)
endif

# Builds Kubernetes once, in .cache/kube, unless FIRSTHOP_TEST_KUBE_BIN names a directory with its programs.
WITH_KUBE = bin=$${FIRSTHOP_TEST_KUBE_BIN:-$$(cd test/kube && $(GO) run -buildvcs=false ./binaries/print)}; \
	export FIRSTHOP_TEST_KUBE_BIN="$$bin";

# Tests of the product's own packages that start a real API server.
REAL = -run RealAPIServer ./natinit/apiserver/...

# The oracle goes without the race detector: what it asks is pure, and its hundred thousand cases would take minutes.
.PHONY: test-kube
test-kube: setup-test setup-kube build ## the tests with real API servers and kube-proxy, and the oracle: a part of test
	@$(WITH_KUBE) .ci/test $(REAL); \
		(cd test/kube; MODULE=test/kube ../../.ci/test $$($(GO) list ./... | grep -v '/oracle$$\|/scenes$$\|/e2e$$')); \
		RACE=no MODULE=test/kube .ci/test ./oracle

# SCENES are flags of go test, as "-run Upgrade"; -short is the half that is in CI.
SCENES ?=
.PHONY: test-cluster
test-cluster: setup-test setup-kube ## real clusters by kubeadm, in namespaces: scenes of a cluster's life under load; SCENES=-short for CI's, SCENES='-run BeforeKubeadm' for some
	@$(WITH_KUBE) (cd test/kube && $(GO) run -buildvcs=false ./nodes/prepare); \
		RACE=no REPORT=no MODULE=test/kube .ci/test -v -timeout 90m $(SCENES) ./scenes

# PROXY is who is judged, firsthop or kube-proxy; FOCUS a regular expression of the tests' names.
PROXY ?= firsthop
FOCUS ?=
.PHONY: test-e2e
test-e2e: setup-test setup-kube ## Kubernetes' own tests of the network, on a real cluster without kube-proxy; PROXY=kube-proxy to compare, FOCUS='Services should' for some
	@$(WITH_KUBE) (cd test/kube && $(GO) run -buildvcs=false ./nodes/prepare); \
		RACE=no REPORT=no MODULE=test/kube .ci/test -v -timeout 4h ./e2e -args -proxy '$(PROXY)' $(if $(FOCUS),-focus '$(FOCUS)')

# A release or commit that nodes may run. Its source is taken from the repository, so a shallow clone has to fetch it first.
FORMER ?= 49eda8a
.PHONY: test-upgrade
test-upgrade: setup-test ## clients outlive an upgrade from the commit FORMER, and the way back
	rm -rf bin/former; mkdir -p bin/former/source; git archive $(FORMER) | tar -x -C bin/former/source
	cd bin/former/source && $(PRODUCT) -o ../firsthop ./cmd/firsthop
	FIRSTHOP_TEST_FORMER=$(CURDIR)/bin/former/firsthop $(GO) test -count=1 -v -run OutliveAnUpgrade ./test/clients/outlive

.PHONY: test-vm
test-vm: setup-vm ## the kernel's part of the tests on Debian's kernels, and short lives of whole systems; VM=5.10 for one, VM_KERNEL=FILE for another
	$(GO) build -buildvcs=false -o bin/test-vm ./test/vm/run
	bin/test-vm -boot +short -vm '$(VM)' -suite '$(SUITE)' -kernel '$(VM_KERNEL)' -modules '$(VM_MODULES)'

.PHONY: test-lives
test-lives: setup-vm ## short lives of whole systems: a part of test-vm
	$(GO) build -buildvcs=false -o bin/test-vm ./test/vm/run
	bin/test-vm -boot short

.PHONY: test-boot
test-boot: setup-vm vm-packages vm-kube image ## whole systems with their systemd, booted several times: install, reboot, cut of power, uninstall; SYSTEM=debian12 BOOT=life for one
	$(GO) build -buildvcs=false -o bin/test-vm ./test/vm/run
	bin/test-vm -boot all -system '$(SYSTEM)' -path '$(BOOT)'

.PHONY: test-all
test-all: export FIRSTHOP_TEST_LONG = 1
test-all: export TEST_TIMEOUT = 60m
test-all: test test-upgrade test-cluster setup-vm vm-packages vm-kube image ## every test there is
	$(GO) build -buildvcs=false -o bin/test-vm ./test/vm/run
	bin/test-vm -boot +all

.PHONY: fuzz
fuzz: ## every fuzz test for FUZZTIME (10s, or 1000x); fails where one was executed less than a thousand times
	.ci/fuzz $(FUZZTIME) $(PKG)
ifeq ($(PKG),./...)
	for module in $(NESTED); do MODULE=$$module .ci/fuzz $(FUZZTIME) ./...; done
endif

.PHONY: bench
bench: setup-test build ## the benchmarks, and bench-kube; BENCH=Connect for some of the former only
	.ci/test -run '^$$' -bench '$(BENCH)' -timeout 30m $(PKG)
ifeq ($(BENCH) $(PKG),. ./...)
	$(MAKE) --no-print-directory bench-kube
endif

# How many Services, and what else package test/kube/bench takes as flags. The whole is
# KUBE_SIZES=10,1000,10000,30000, and writes docs/benchmarks.md; a quarter of an hour on two idle cores.
KUBE_SIZES ?=
KUBE_FLAGS ?=
.PHONY: bench-kube
bench-kube: setup-test setup-kube build ## firsthop beside the real kube-proxy, in short; KUBE_SIZES=10,1000,10000,30000 for docs/benchmarks.md
	mkdir -p .cache/kube
	$(WITH_KUBE) MODULE=test/kube .ci/test -run '^$$' -bench BesideKubeProxy -benchtime 1x -timeout 2h ./bench -args \
		-firsthop $(CURDIR)/bin/firsthop -results $(CURDIR)/.cache/kube/bench.json \
		-command 'make bench-kube$(if $(KUBE_SIZES), KUBE_SIZES=$(KUBE_SIZES))$(if $(KUBE_FLAGS), KUBE_FLAGS="$(KUBE_FLAGS)")' \
		$(if $(KUBE_SIZES),-sizes $(KUBE_SIZES) -docs $(CURDIR)/docs) $(KUBE_FLAGS)

.PHONY: cover
cover: setup-test build ## what the tests reach, by function and in total
	mkdir -p .cache
	.ci/test -coverpkg=./... -coverprofile=.cache/cover.out $(PKG)
	$(GO) tool cover -func=.cache/cover.out

##@ Checks

.PHONY: lint
lint: setup-bpf ## formatting, vet, staticcheck, generated files, modules
	@files=$$(gofmt -l .); test -z "$$files" || { echo "not formatted (make fmt):"; echo "$$files"; exit 1; } >&2
	clang-format-19 --dry-run -Werror $$(find bpf -name '*.[ch]')
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	staticcheck=$$($(GO) tool -n staticcheck); for module in $(NESTED); do \
		(cd $$module && $(GO) vet ./... && "$$staticcheck" ./... && $(GO) mod tidy -diff && $(GO) mod verify); done
	for script in .ci/*; do bash -n "$$script"; done
	$(MAKE) --no-print-directory check-generated
	$(GO) mod tidy -diff
	$(GO) mod verify

.PHONY: check-generated
check-generated: setup-bpf ## are the committed BPF objects those of the committed C?
	.ci/check-generated

.PHONY: manifests
manifests: ## render deploy/firsthop.yaml, deploy/manifests and deploy/runtime from deploy/chart; a test compares them
	$(GO) test -count=1 -run TestRenderedFiles ./deploy -update

##@ Machine

.PHONY: setup
setup: ## install every Debian package that any target needs
	.ci/setup all

.PHONY: setup-test setup-bpf setup-demo setup-vm setup-kube
setup-test setup-bpf setup-demo setup-vm setup-kube:
	@.ci/setup $(@:setup-%=%)

.PHONY: clean
clean: ## remove what was built
	rm -rf bin .cache

.PHONY: help
help: ## this list
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The demo needs root. sudo is asked for only by those who are not.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)
