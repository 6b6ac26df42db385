# Each target sets up what it needs: Debian packages, .venv, and the package with everything the tests use.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed

# The wheels of torch, OpenCV and pycocotools bring their own libraries and need only the C++ runtime.
DEBIAN_PACKAGES := libstdc++6 zlib1g
# Debian's Python comes without ensurepip, and so without a working venv. Other builds of Python have it.
ifneq ($(shell $(PYTHON) -c 'import ensurepip' 2>/dev/null && echo yes),yes)
DEBIAN_PACKAGES += python3-venv
endif

.DEFAULT_GOAL := help
.PHONY: help demo test lint format types contracts setup debian-packages build clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP) ## segment sample images, plain and refined, into demo_output/
	$(VENV)/bin/refinesam demo --output demo_output

test: lint types contracts ## every check: ruff, mypy, import-linter, pytest
	$(VENV)/bin/python -m pytest

lint: $(STAMP) ## ruff: rules and format
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(STAMP) ## let ruff mend what it can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

types: $(STAMP) ## mypy --strict on src
	$(VENV)/bin/mypy

contracts: $(STAMP) ## import-linter: the architecture's rules
	$(VENV)/bin/lint-imports --no-logo

setup: $(STAMP) ## Debian packages, .venv and the package, nothing else

$(STAMP): pyproject.toml constraints.txt | debian-packages
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "refinesam needs Python 3.11 or later, $(PYTHON) is $$($(PYTHON) -V 2>&1)." \
		          "Name another one: make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

debian-packages: ## install the Debian packages that are missing (as root), or name them
	@command -v dpkg >/dev/null || exit 0; \
	missing=; \
	for package in $(DEBIAN_PACKAGES); do \
		dpkg -s $$package 2>/dev/null | grep -q '^Status: .* installed$$' || missing="$$missing $$package"; \
	done; \
	test -n "$$missing" || exit 0; \
	if [ "$$(id -u)" = 0 ]; then \
		apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $$missing; \
	else \
		echo "These Debian packages are missing:$$missing"; \
		echo "Install them and run make again: sudo apt-get install$$missing"; \
		exit 1; \
	fi

build: $(STAMP) ## a wheel in dist/
	$(VENV)/bin/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean: ## remove .venv, caches and outputs
	rm -rf $(VENV) dist build demo_output .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
