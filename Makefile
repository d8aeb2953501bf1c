# nspawnd. "make help" lists what there is.

PREFIX ?= /usr/local
SUITE ?= trixie
FUZZTIME ?= 60s
export CGO_ENABLED := 0
GOFLAGS_BUILD := -trimpath -tags containers_image_openpgp -ldflags '-s -w'
GOFLAGS_TEST := -tags containers_image_openpgp
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
FOLDERS := cgroup cmd dbus dist image importd machined network tests units
COMMANDS := nspawnd-run machinectl-lite nspawnd-launcher
.DEFAULT_GOAL := build

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "%-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build the commands into build/
	@mkdir -p build
	go build $(GOFLAGS_BUILD) -o build/ $(addprefix ./cmd/,$(COMMANDS))

.PHONY: docs
docs: ## man pages and shell completions into build/docs/
	go run -tags docs,containers_image_openpgp ./cmd/nspawnd-run build/docs
	go run -tags docs,containers_image_openpgp ./cmd/machinectl-lite build/docs

.PHONY: deps
deps: ## install the Debian packages that the lab and the VM need (as root)
	tests/vm/deps.sh

.PHONY: check
check: lint race fuzz lab-tests ## run every test: lint, unit under the race detector, fuzz, lab on systemd 257 and 262, VM (as root)

.PHONY: lint
lint: ## go vet, staticcheck, gofmt, and what must not be linked
	@test -z "$$(gofmt -l $(FOLDERS))" || { gofmt -d $(FOLDERS); exit 1; }
	go vet $(GOFLAGS_TEST) ./...
	go run $(STATICCHECK) $(GOFLAGS_TEST) ./...
	@! go list $(GOFLAGS_TEST) -deps ./cmd/... | grep -x golang.org/x/crypto/openpgp || { echo "old OpenPGP code is linked"; exit 1; }
	@! go list $(GOFLAGS_TEST) -deps ./cmd/nspawnd-run | grep -E '^(go.podman.io|google.golang.org)' || { echo "nspawnd-run links what its start time can't afford"; exit 1; }

.PHONY: unit
unit: ## unit tests
	go test $(GOFLAGS_TEST) $$(go list ./... | grep -v /tests/)

.PHONY: race
race: ## unit tests under the race detector
	CGO_ENABLED=1 go test -race $(GOFLAGS_TEST) $$(go list ./... | grep -v /tests/)

.PHONY: fuzz
fuzz: ## a minute of fuzzing for each parser, two at a time (as root, or layers are not unpacked)
	@mkdir -p build
	@grep -ro --include='*_test.go' '^func Fuzz[A-Za-z]*' . | sed 's,/[^/]*:func , ,' | \
		xargs -P 2 -n 2 sh -c 'go test $(GOFLAGS_TEST) -run "^$$1$$" -fuzz "^$$1$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 50x -parallel 1 "$$0" > build/$$1.log 2>&1 || { cat build/$$1.log; exit 255; }; tail -n 1 build/$$1.log'

.PHONY: lab-tests
lab-tests: build deps
	go test $(GOFLAGS_TEST) -count=1 -timeout 75m ./tests/...

.PHONY: lab
lab: build deps ## a prompt in a new lab: make lab SUITE=forky (or trixie)
	go run ./tests/vm/lab $(SUITE)

.PHONY: vm
vm: build deps ## run a command in a VM: make vm SUITE=forky CMD='systemctl --version'
	go run ./tests/vm/lab vm $(SUITE) bash -c '$(CMD)'

.PHONY: demo
demo: build deps ## the main job, with its output: pull a signed image, run it, stop it (as root)
	go run ./tests/vm/demo $(SUITE)

.PHONY: bench
bench: build deps ## compare with systemd-run, systemd-nspawn, podman, importctl and machinectl: make bench ONLY=start (scale, pull, clean, list)
	go run ./tests/vm/bench -only '$(ONLY)' -o build/bench.json

.PHONY: install
install: build docs ## install below PREFIX (/usr/local) and DESTDIR
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/bin build/nspawnd-run build/machinectl-lite
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/lib/nspawnd build/nspawnd-launcher
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man1 build/docs/man/*
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/bash-completion/completions build/docs/bash/*
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/zsh/site-functions build/docs/zsh/*
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d build/docs/fish/*

.PHONY: clean
clean: ## remove what was built (cached lab roots stay: /var/cache/nspawnd-lab)
	rm -rf build
