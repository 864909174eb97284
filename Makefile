# demo · lab · test · check · screenshots · lock. Each sets up what it needs; works with the make and bash that every Mac has.
VENV   := .venv
READY  := $(VENV)/.ready
PYTHON := $(VENV)/bin/python

.PHONY: help demo lab test check lint drills families test-oldest test-newest audit regress planted docs screenshots lock clean
help:
	@echo "make demo   run the five notebooks on the embedded model: outputs/local-lora/"
	@echo "make lab    open the notebooks in JupyterLab (this machine only)"
	@echo "make test   every test; some twenty minutes on two cores"
	@echo "make check  formatting, lint, stored notebooks and the quick tests"
	@echo "make drills  faults on purpose: bad input, damaged artefacts, full disks, killed runs"
	@echo "make families  trains every model family in small and writes docs/models.md"
	@echo "make test-oldest, make test-newest  every test on other library versions"
	@echo "make audit  known weaknesses of the locked dependencies (asks PyPI's advisories)"
	@echo "make regress  the regression cases against their baselines: outputs/regression/"
	@echo "make planted  plants faults and looks whether the regression run turns red"
	@echo "make docs   write docs/troubleshooting.md from its table"
	@echo "make screenshots  every notebook after Run All as pictures: outputs/screenshots/"
	@echo "make lock   resolve constraints.txt again from pyproject.toml"

$(READY): pyproject.toml constraints.txt tools/setup_environment.sh
	@bash tools/setup_environment.sh $(VENV)

demo: $(READY)
	$(PYTHON) -m mac_lora_helpers run --preset smoke

lab: $(READY)
	$(PYTHON) -m jupyterlab --ip=127.0.0.1 notebooks/01_environment_check.ipynb

# Two processes, whole files each: what a file prepares is prepared once. In the order of the folders, so that the run ends with
# many small files; by number of tests, a few files of one long test each would be left for the end.
test: $(READY)
	$(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not families and not real"

check: lint
	$(PYTHON) -m pytest -m "not slow and not browser and not families and not real"

lint: $(READY)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m nbstripout --verify --keep-id --extra-keys "metadata.papermill metadata.widgets cell.metadata.papermill cell.metadata.execution" notebooks/*.ipynb

# Faults on purpose: generated input, damaged artefacts, full disks, killed runs.
drills: $(READY)
	$(PYTHON) -m pytest tests/drills

# The matrix of model families; what came out stands in docs/models.md.
families: $(READY)
	MAC_LORA_WRITE_MODELS=1 $(PYTHON) -m pytest tests/families
	$(PYTHON) tests/families/page.py

# The quick tests on the lower and the upper end of pyproject.toml's ranges, each in an environment of its own.
test-oldest: $(READY)
	@tools/test_versions.sh oldest

test-newest: $(READY)
	@tools/test_versions.sh newest

audit: $(READY)
	@tools/audit.sh

regress: $(READY)
	$(PYTHON) -m mac_lora_helpers regress

planted: $(READY)
	$(PYTHON) tests/regression/planted/drill.py

docs: $(READY)
	$(PYTHON) -m mac_lora_helpers.troubleshooting > docs/troubleshooting.md

screenshots: $(READY)
	$(PYTHON) tools/screenshots.py outputs/screenshots

# The deployment target keeps the resolver from choosing an older torch for Macs; the lock holds names and versions, no addresses.
lock: $(READY)
	UV_FIND_LINKS="$(PIP_FIND_LINKS)" MACOSX_DEPLOYMENT_TARGET=14.0 $(PYTHON) -m uv pip compile --universal --upgrade --all-extras \
	  --python-version 3.11 --no-annotate --no-header --quiet pyproject.toml -o constraints.txt

clean:
	rm -rf $(VENV) .boot
