# `make help` lists what there is. Needs Docker, and Go as new as go.mod says; installs small tools that are missing.
IMAGE      ?= docker-usermode-linux
BASE_IMAGE ?= debian:trixie-slim
# What the guest has as its /: debian, the recipe in rootfs/, or the name of any image.
USERLAND   ?= debian
FUZZTIME   ?= 1s
# Time for the whole of `go test`, and where `make run` publishes the guest's SSH server.
TIMEOUT    ?= 45m
# Every end-to-end test as it goes; where nobody watches, those that fail alone.
VERBOSE    ?= $(if $(CI),,-v)
# Of the benchmarks: seconds for each measurement of the network, how often each is made, FORCE=1 for a busy machine.
SECONDS    ?= 5
ROUNDS     ?= 3
SSH        ?= 127.0.0.1:2222

GO := go

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help base-image certs image run host kernel test lint unit fuzz soak e2e rounds bench bench-boot bench-guest bench-net clean need-go need-docker

help: ## List the targets
	@sed -n 's/^\([a-z][a-z0-9-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

base-image: need-docker ## Pull the base image, or make it from Debian's archive
	scripts/base-image $(BASE_IMAGE)

certs: ## Copy this machine's extra certificate authorities (and EXTRA_CA=file) to certs/
	scripts/certs $(EXTRA_CA)

image: base-image certs ## Build the image (the kernel takes minutes, the first time)
	docker build --build-arg BASE_IMAGE=$(BASE_IMAGE) --build-arg USERLAND=$(USERLAND) -t $(IMAGE) .

run: image ## Build, then boot a guest: ssh -p 2222 root@127.0.0.1
	docker run --rm -i $$(test -t 0 && echo -t) --name docker-usermode-linux -p $(SSH):22 $(RUN_FLAGS) $(IMAGE)

host: need-go $(if $(KERNEL),,image) ## Build dist/uml, the program for hosts; with KERNEL=dist/linux without Docker
	GO=$(GO) KERNEL=$(KERNEL) scripts/host $(IMAGE)

kernel: ## Build dist/linux here, without Docker; KERNEL_SERIES=7.2 FRAGMENTS="a.config" TIME_TRAVEL=1 GCOV=1 UNPATCHED=1 TREE=dir
	KERNEL_SERIES=$(KERNEL_SERIES) TIME_TRAVEL=$(TIME_TRAVEL) GCOV=$(GCOV) UNPATCHED=$(UNPATCHED) TREE=$(TREE) scripts/kernel $(FRAGMENTS)

test: need-go need-docker lint unit fuzz image e2e ## Everything that a change has to pass

lint: need-go ## Formatting, vet, staticcheck, shellcheck
	scripts/lint

unit: need-go ## Unit tests, with the race detector
	scripts/ensure gcc libc6-dev
	command -v newuidmap >/dev/null || scripts/ensure uidmap
	test -x /sbin/mkfs.ext4 || scripts/ensure e2fsprogs
	$(GO) test -race -timeout $(TIMEOUT) $$($(GO) list ./... | grep -v /test/e2e)

fuzz: need-go ## Each fuzz target for FUZZTIME
	scripts/fuzz $(FUZZTIME)

soak: need-go ## 200,000 connections and 200,000 UDP flows each way, minutes
	SOAK=200000 $(GO) test -count=1 -run '^TestSoak' -timeout $(TIMEOUT) -v ./internal/slirp/

e2e: need-go need-docker ## Tests of the built image: boots real guests, as new users of this host, too; E2E_DATABASE=1
	docker compose version >/dev/null 2>&1 || scripts/ensure docker-compose
	scripts/ensure gcc libc6-dev
	command -v ssh >/dev/null || scripts/ensure openssh-client
	test -x /sbin/mkfs.ext4 || scripts/ensure e2fsprogs
	command -v newuidmap >/dev/null || scripts/ensure uidmap
	command -v useradd >/dev/null || scripts/ensure passwd
	command -v losetup >/dev/null || scripts/ensure mount
	command -v pgrep >/dev/null || scripts/ensure procps
	ROOTFS=dist/rootfs.tar GO=$(GO) scripts/host $(IMAGE)
	config=$$(scripts/buildx $(BASE_IMAGE) $(CURDIR)/dist/docker) && \
		CGO_ENABLED=0 E2E_IMAGE=$(IMAGE) E2E_BASE_IMAGE=$(BASE_IMAGE) E2E_DATABASE=$(E2E_DATABASE) \
		E2E_DOCKER_CONFIG=$$config E2E_UML=$(CURDIR)/dist/uml E2E_ROOTFS=$(CURDIR)/dist/rootfs.tar \
		$(GO) test -count=1 -timeout $(TIMEOUT) $(VERBOSE) ./test/e2e/...

rounds: need-go need-docker ## Start and stop one guest 500 times, half an hour
	test -x /sbin/mkfs.ext4 || scripts/ensure e2fsprogs
	CGO_ENABLED=0 E2E_IMAGE=$(IMAGE) STOP_ROUNDS=500 $(GO) test -count=1 -timeout 2h -v -run TestStopRounds ./test/e2e/

bench: bench-boot bench-guest bench-net ## Boot times of the built image; its guest and its network beside their peers'

bench-boot: need-go image
	E2E_IMAGE=$(IMAGE) $(GO) test -run '^$$' -bench Boot -benchtime 5x -count 3 ./bench/

bench-guest: need-go image ## The guest alone; UNPATCHED=dist/linux-unpatched; to try it: ROUNDS=1 FORCE=1 RAW=/tmp/guest.txt
	IMAGE=$(IMAGE) BASE_IMAGE=$(BASE_IMAGE) UNPATCHED=$(UNPATCHED) bench/guest -rounds $(ROUNDS) $(if $(FORCE),-force)

bench-net: need-go image ## The network alone; to try the benchmark itself: SECONDS=1 ROUNDS=1 FORCE=1 RAW=/tmp/net.txt
	IMAGE=$(IMAGE) BASE_IMAGE=$(BASE_IMAGE) bench/net -seconds $(SECONDS) -rounds $(ROUNDS) $(if $(FORCE),-force)

clean: ## Remove the images and what the build left here (not Docker's build cache)
	docker image rm -f $(IMAGE) $(IMAGE)-bench $(IMAGE)-bench-guest
	$(GO) clean -testcache
	rm -rf bin dist internal/builtin/files/linux internal/builtin/files/initramfs

need-go:
	@scripts/need go

need-docker:
	@scripts/need docker
