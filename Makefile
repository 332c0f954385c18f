# Build, try and test ply. `make tour` and `make test` do all of their own set-up on a fresh Debian 12 with Go, as root.
SHELL  := /bin/bash
PREFIX ?= /usr/local
DESTDIR ?=
BIN     ?= bin
BUILD_NEEDS := gcc libc6-dev pkg-config libseccomp-dev libisal-dev
RUN_NEEDS   := nftables iproute2 procps
TOUR_NEEDS  := mmdebstrap ca-certificates curl busybox-static xz-utils
TEST_NEEDS  := docker.io qemu-user-static docker-registry postgresql-15 skopeo erofs-utils busybox-static strace apache2-utils openssh-server xz-utils bzip2 zstd tar git patch libcap2-bin attr acl python3-docker mmdebstrap curl groff-base e2fsprogs xfsprogs btrfs-progs util-linux docker-compose dbus firewalld ufw iptables

# A tree that git will not read, such as another user's, builds without its commit in the version.
VCS := $(shell git rev-parse HEAD >/dev/null 2>&1 || echo -buildvcs=false)

.PHONY: build registry-image tour itself test mutate nightly lint bench install uninstall

build:
	@test/setup/packages $(BUILD_NEEDS)
	CGO_ENABLED=0 go build $(VCS) -trimpath -ldflags '-s -w' -o $(BIN)/ply ./cmd/ply
	CGO_ENABLED=0 go build $(VCS) -trimpath -ldflags '-s -w' -o $(BIN)/ply-registry ./cmd/ply-registry
	CGO_ENABLED=0 go build $(VCS) -trimpath -ldflags '-s -w' -o $(BIN)/ply-log ./cmd/ply-log
	CGO_ENABLED=1 go build $(VCS) -trimpath -tags isal -ldflags '-s -w' -o $(BIN)/plyd ./cmd/plyd
	CGO_ENABLED=1 go build $(VCS) -trimpath -tags 'seccomp netgo osusergo' -ldflags '-s -w -linkmode external -extldflags "-static"' -o $(BIN)/ply-shim ./cmd/ply-shim

# The registry as an image, in the engine that ply reaches, of the binary that was just built and the certificates of this machine.
registry-image: build
	@test/setup/packages ca-certificates
	$(BIN)/ply build -t ply-registry -f packaging/ply-registry.Dockerfile --build-context compiled=$(BIN) --build-context certificates=/etc/ssl/certs packaging

# TOUR=--debian-registry takes the tour with Debian's docker-registry.
tour: build
	@test/setup/packages $(RUN_NEEDS) $(TOUR_NEEDS)
	test/tour/tour $(TOUR)

# ply builds ply.
itself: build
	@test/setup/packages $(RUN_NEEDS) $(TOUR_NEEDS) git
	test/itself/itself

test: build
	@{ test/setup/versitygw && test/setup/clients regctl; } >/dev/null & test/setup/packages $(RUN_NEEDS) $(TEST_NEEDS) && wait $$!
	go vet ./... && go vet -tags isal ./internal/compress
	PLY_BIN=$(CURDIR)/bin go test -timeout 45m ./...
	for cli in $$(type -ap docker | xargs -n 1 realpath | sort -u); do PLY_DOCKER_CLI=$$cli go test -run AgainstDocker ./internal/cli/... || exit 1; done
	go test -tags isal ./internal/compress
	go run ./test/mutate -sample 3

# Every mutation of test/mutate must be caught.
mutate: build
	@test/setup/packages $(RUN_NEEDS) $(TEST_NEEDS)
	go run ./test/mutate

# The long forms of the tests. PLY_NIGHTLY=1 asks for those that have no flag.
nightly: test mutate itself
	test/tour/tour --debian-registry
	@test/setup/packages buildah podman chromium npm
	test/setup/axe
	PLY_NIGHTLY=1 go test -count=1 -run TestBrowser ./internal/registry/web
	test/setup/clients docker29 docker-buildx buildkitd docker-compose crane cosign go-clients testcontainers
	go test -count=1 -timeout 60m ./test/drivers -layertest.scripts 400
	for d in erofs overlay2 vfs; do go test -count=1 -timeout 60m -run TestDriver ./internal/store/layer/$$d -layertest.stacks 400 || exit 1; done
	PLY_NIGHTLY=1 go test -count=1 -timeout 30m ./internal/network
	PLY_NIGHTLY=1 PLY_BIN=$(CURDIR)/bin go test -count=1 -timeout 60m ./test/e2e
	PLY_NIGHTLY=1 PLY_BIN=$(CURDIR)/bin go test -count=1 -timeout 120m ./test/build
	PLY_BIN=$(CURDIR)/bin go test -v -count=1 -timeout 180m -run 'TestKill|TestPowerCut|TestRecordedCrashes|TestFaults' ./test/crash -crash.kills 1000 -crash.cuts 1000 -crash.states 300 -crash.faults
	PLY_BIN=$(CURDIR)/bin go test -v -count=1 -timeout 60m -run TestDamage ./test/crash -crash.damage
	go test -count=1 -timeout 120m ./internal/registry/server -registry.soak 30m -registry.replicas 5m -registry.pause 2s -registry.kills 500 -registry.cuts 100 -registry.uploads 10000
	test/setup/conformance
	PLY_NIGHTLY=1 go test -count=1 -run TestConformance ./internal/registry/server
	PLY_BIN=$(CURDIR)/bin go test -race -count=1 -timeout 60m ./internal/... ./test/crash
	@test/setup/packages qemu-system-x86 qemu-utils mmdebstrap openssh-client e2fsprogs
	PLY_NIGHTLY=1 PLY_BIN=$(CURDIR)/bin go test -v -count=1 -timeout 240m ./test/machine

lint:
	gofmt -l cmd internal test bench | (! grep .)
	go vet ./... && go test ./internal/lint

bench: build
	@test/setup/packages $(RUN_NEEDS) $(TEST_NEEDS)
	go run -tags isal ./bench $(BENCH)

install: build
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/bin $(addprefix $(BIN)/,ply plyd ply-shim ply-log ply-registry)
	PREFIX=$(PREFIX) DESTDIR=$(DESTDIR) packaging/install $(DESTDIR)$(PREFIX)

uninstall:
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/bin/,ply plyd ply-shim ply-log ply-registry)
	DESTDIR=$(DESTDIR) packaging/uninstall $(DESTDIR)$(PREFIX)
