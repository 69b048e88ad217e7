# make demo    set up and run the main job on real images
# make test    set up, check the code and run the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow check lock lock-cpu audit sbom bench docs site clean

# --no-compile: Python compiles what is used when it is used; of all packages together that is a small part.
$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[test]'
	touch $@

demo: $(VENV)/ready
	PATH="$(CURDIR)/$(BIN):$$PATH" pipelines/digits/run.sh demo/digits demo

check: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict featx
	$(BIN)/python docs/commands.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/hadolint Dockerfile
	$(BIN)/shellcheck pipelines/*/*.sh pipelines/cluster/*.sbatch benchmarks/*.sh

test: check
	OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal

test-slow: $(VENV)/ready
	$(BIN)/pytest -m slow
	$(BIN)/pytest --hypothesis-profile=exploring tests/heads tests/networks tests/images

# The versions and hashes that the container image is built from.
lock: $(VENV)/ready
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --extra serve --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--custom-compile-command "make lock" --output-file requirements.lock

# The same of the wheels without CUDA, which are on an index of PyTorch's own.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
lock-cpu: $(VENV)/ready
	$(BIN)/python -m pip install --quiet uv
	mkdir -p build
	sed -nE 's/^(torch|torchvision|torchcodec)==([^ ]+).*/\1==\2+cpu/p' requirements.lock > build/cpu.in
	$(BIN)/uv pip compile build/cpu.in --no-deps --index-url $(TORCH_INDEX) --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --custom-compile-command "make lock-cpu" --output-file requirements-cpu.lock

# Known vulnerabilities of those versions; needs a network.
audit: $(VENV)/ready
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --requirement requirements.lock --disable-pip

bench: $(VENV)/ready
	$(BIN)/python benchmarks/extract.py

docs: $(VENV)/ready
	$(BIN)/python docs/commands.py

# The pages of docs/ as a site in build/site.
site: $(VENV)/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# What the container is made of, as CycloneDX: build/sbom.json.
sbom: $(VENV)/ready
	$(BIN)/python -m pip install --quiet cyclonedx-bom
	mkdir -p build
	$(BIN)/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --output-reproducible --output-file build/sbom.json

clean:
	rm -rf $(VENV) demo build *.egg-info
