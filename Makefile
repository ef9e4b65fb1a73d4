# The two commands of the README are `make demo` and `make test`. Each sets up what is missing.

ARCH ?= x86_64 aarch64
PYTEST_ARGS ?=
# Processes that run tests: guests are emulated by one processor each.
WORKERS ?= auto
SOAK_ARGS ?=
FUZZ_ARGS ?=
FRESH_ARGS ?=

SITE ?= target/docs

.PHONY: help setup demo projects test lint bench soak fuzz wheel image docs test-fresh reference

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install what is missing
	@.ci/setup

# Where the package repositories that the guest names do not answer, one is made here, once; see tests/packages.
demo: setup ## run examples/linux for real
	@settings=$$(.venv/bin/python -m tests.packages) || exit; eval "$$settings"; failed=0; for arch in $(ARCH); do \
		.venv/bin/qcase run --workspace examples/linux --arch $$arch || failed=$$?; \
	done; exit $$failed

# Projects of others, fetched by their digests, and their own tests.
projects: setup ## build and run other people's projects
	@.venv/bin/python examples/projects/fetch.py
	@failed=0; for arch in $(ARCH); do \
		.venv/bin/qcase run --workspace examples/projects --arch $$arch || failed=$$?; \
	done; exit $$failed

test: ## every tier of tests
	@.ci/setup tests
	@PATH=$$PATH:/usr/sbin:/sbin .venv/bin/python -m pytest -n $(WORKERS) --maxprocesses 4 $(PYTEST_ARGS)

lint: setup ## linters, types, layers and sizes
	@.venv/bin/python -m pytest tests/static/test_house.py

bench: setup ## times, beside a baseline in the same run
	@.venv/bin/python -m tests.tools.bench

# Breaks the store at every point there is, kills many processes at random, and tries 20,000 hostile trees; prints its seeds.
soak: setup ## break the store, kill processes, try hostile trees
	@.venv/bin/python -m tests.tools.soak $(SOAK_ARGS)

wheel: setup ## build the wheel into dist/
	@.venv/bin/python -m hatchling build -t wheel -d dist

# Random guests: the console's judge against an oracle that shares nothing with it; prints its seed.
# FUZZ_ARGS: --count N --seed S --jobs J --seconds T --echoes listed|damaged|all
fuzz: setup ## random guests: the judge against an oracle
	@.venv/bin/python -m tests.fuzz $(FUZZ_ARGS)

# The documentation as a web site, into target/docs.
docs: setup ## the documentation as a web site, into target/docs
	@.venv/bin/python -m mkdocs build -q --strict --site-dir $(SITE)

# What the docs show of the models: the keys of the configuration, and the schemas.
reference: setup ## write schemas, man page and reference from the models
	@.venv/bin/python -m tests.tools.reference

# The image of `Containerfile`, for hosts that have an engine and nothing else.
image: setup ## the image of Containerfile
	@.ci/image

# The two commands on an empty Debian 12 and 13, with an engine of their own: an hour and more.
test-fresh: setup ## demo and tests on an empty Debian
	@.venv/bin/python -m tests.tools.fresh $(FRESH_ARGS)
