# `make help` lists what there is. Needs Docker, and Go as new as go.mod says; installs small tools that are missing.
IMAGE      ?= docker-usermode-linux
BASE_IMAGE ?= debian:trixie-slim
FUZZTIME   ?= 3s
# Time for the whole of `go test`, and where `make run` publishes the guest's SSH server.
TIMEOUT    ?= 20m
SSH        ?= 127.0.0.1:2222

GO := go

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help base-image certs image run test lint unit fuzz e2e bench clean need-go need-docker

help: ## List the targets
	@sed -n 's/^\([a-z][a-z0-9-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

base-image: need-docker ## Pull the base image, or make it from Debian's archive
	scripts/base-image $(BASE_IMAGE)

certs: ## Copy this machine's extra certificate authorities (and EXTRA_CA=file) to certs/
	scripts/certs $(EXTRA_CA)

image: base-image certs ## Build the image (the kernel takes minutes, the first time)
	docker build --build-arg BASE_IMAGE=$(BASE_IMAGE) -t $(IMAGE) .

run: image ## Build, then boot a guest: ssh -p 2222 root@127.0.0.1
	docker run --rm -i $$(test -t 0 && echo -t) --name docker-usermode-linux -p $(SSH):22 $(RUN_FLAGS) $(IMAGE)

test: need-go need-docker lint unit fuzz image e2e ## Everything that a change has to pass

lint: need-go ## Formatting, vet, staticcheck, shellcheck
	scripts/lint

unit: need-go ## Unit tests, with the race detector
	scripts/ensure gcc libc6-dev
	$(GO) test -race -timeout $(TIMEOUT) $$($(GO) list ./... | grep -v /test/e2e)

fuzz: need-go ## Each fuzz target for FUZZTIME
	scripts/fuzz $(FUZZTIME)

e2e: need-go need-docker ## Tests of the built image: boots real guests
	docker compose version >/dev/null 2>&1 || scripts/ensure docker-compose
	command -v ssh >/dev/null || scripts/ensure openssh-client
	CGO_ENABLED=0 E2E_IMAGE=$(IMAGE) $(GO) test -count=1 -timeout $(TIMEOUT) -v ./test/e2e/...

bench: need-go image ## Boot times of the built image
	E2E_IMAGE=$(IMAGE) $(GO) test -run '^$$' -bench . -benchtime 5x -count 3 ./bench/

clean: ## Remove the images and what the build left here (not Docker's build cache)
	docker image rm -f $(IMAGE)
	$(GO) clean -testcache
	rm -rf bin

need-go:
	@scripts/need go

need-docker:
	@scripts/need docker
