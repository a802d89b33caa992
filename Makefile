# Letterlock: `make up` starts the lab, `make test` proves the kit. `make help` says the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:

PROJECT := $(CURDIR)
VENV := $(PROJECT)/.venv/bin
export PATH := $(VENV):$(PATH)
# molecule sets this for its own runs; the lab's inventory reads it.
export MOLECULE_PROJECT_DIRECTORY := $(PROJECT)
export ANSIBLE_CONFIG := $(PROJECT)/ansible.cfg
# Wide enough for a task's line where there is no terminal.
export COLUMNS ?= 150
# Where there is no UTF-8 locale, Ansible refuses to start.
export LC_ALL := C.UTF-8

HOST ?= deb12

.PHONY: help up down ssh test lint unit drill verify drift bench docs lock clean requirements

help: ## Say what each target does
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'

requirements: ## Install what this machine lacks, from locked lists
	@echo "Requirements"
	python3 requirements/install.py

up: requirements ## Start two mail hosts, deploy them, deliver mail and read it back
	@started=$$SECONDS
	echo "Hosts: start, deploy with playbooks/site.yml (molecule converge)"
	molecule converge --scenario-name lab
	echo
	echo "Proof"
	python molecule/shared/lab/prove.py .lab/access.json
	echo "  Up in $$((SECONDS - started)) s"

down: ## Remove the lab: hosts, network, keys, CA and passwords
	@if [ -x $(VENV)/molecule ]; then molecule reset --scenario-name lab >/dev/null 2>&1; molecule destroy --scenario-name lab; fi
	molecule/shared/lab/podman ps --quiet --filter name=letterlock- | grep -q . || molecule/shared/lab/podman --release
	rm -rf .lab/access.json .lab/ssh .lab/pki_lab .lab/passwords

ssh: ## Log in to a host of the lab: make ssh HOST=deb13
	@exec ssh -F .lab/ssh/config_lab $(HOST)

test: requirements ## Run everything: lint, unit tests and all scenarios on both releases
	@python molecule/shared/lab/suite.py

lint: requirements ## Run the linters only
	@python molecule/shared/lab/suite.py --only lint

unit: requirements ## Run the unit tests only
	@python molecule/shared/lab/suite.py --only unit

drill: requirements ## Back hosts up, restore them to fresh ones, read every message back; INVENTORY=... drills your own
	@if [ -n "$(INVENTORY)" ]; then ansible-playbook --inventory=$(INVENTORY) playbooks/restore_drill.yml
	else python molecule/shared/lab/suite.py --only drill; fi

bench: requirements ## Measure speed and served load; writes .lab/bench.json
	@python molecule/shared/lab/bench.py

verify: requirements ## Ask hosts whether they meet what they claim: make verify INVENTORY=... [LIMIT=host]; changes nothing
	@python molecule/shared/verify/verify.py $(foreach one,$(INVENTORY),--inventory=$(one)) $(if $(LIMIT),--limit=$(LIMIT))

drift: requirements ## Find what was changed by hand: make drift INVENTORY=... [LIMIT=host]; 0 in line, 2 drift, 1 error; changes nothing
	@python molecule/shared/verify/drift.py $(foreach one,$(INVENTORY),--inventory=$(one)) $(if $(LIMIT),--limit=$(LIMIT))

docs: requirements ## Write the README's reference of variables and docs/requirements.md from their sources
	@python docs/reference.py
	@python molecule/shared/verify/catalogue.py

lock: ## Resolve the requirements anew and write the locked lists
	@python3 requirements/install.py --lock

clean: down ## Remove the lab's images and caches, and the Python environment, too
	@molecule/shared/lab/podman --clean
	rm -rf .venv .lab .ansible /var/cache/letterlock-lab
