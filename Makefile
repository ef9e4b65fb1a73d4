# The two commands of the README are `make demo` and `make test`. Each sets up what is missing.

ARCH ?= x86_64 aarch64
PYTEST_ARGS ?=
# Processes that run tests: guests are emulated by one processor each.
WORKERS ?= auto
SOAK_ARGS ?=
FRESH_ARGS ?=

SITE ?= target/docs

.PHONY: setup demo test lint bench soak wheel image docs test-fresh reference

setup:
	@.ci/setup

# Where the package repositories that the guest names do not answer, one is made here, once; see tests/packages.
demo: setup
	@settings=$$(.venv/bin/python -m tests.packages) || exit; eval "$$settings"; failed=0; for arch in $(ARCH); do \
		.venv/bin/qcase run --workspace examples/linux --arch $$arch || failed=$$?; \
	done; exit $$failed

test:
	@.ci/setup tests
	@PATH=$$PATH:/usr/sbin:/sbin .venv/bin/python -m pytest -n $(WORKERS) --maxprocesses 4 $(PYTEST_ARGS)

lint: setup
	@.venv/bin/python -m pytest tests/unit/test_house.py

bench: setup
	@.venv/bin/python -m tests.bench

# Breaks the store at every point there is, and kills many processes at random; prints its seeds.
soak: setup
	@.venv/bin/python -m tests.soak $(SOAK_ARGS)

wheel: setup
	@.venv/bin/python -m hatchling build -t wheel -d dist

# The documentation as a web site, into target/docs.
docs: setup
	@.venv/bin/python -m mkdocs build -q --strict --site-dir $(SITE)

# What the docs show of the models: the keys of the configuration, and the schemas.
reference: setup
	@.venv/bin/python -m tests.reference

# The image of `Containerfile`, for hosts that have an engine and nothing else.
image: setup
	@.ci/image

# The two commands on an empty Debian 12 and 13, with an engine of their own: an hour and more.
test-fresh: setup
	@.venv/bin/python -m tests.fresh $(FRESH_ARGS)
