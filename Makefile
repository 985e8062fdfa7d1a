# Everything starts from a machine with Python 3.11, git and make.
PYTHON ?= python3.11
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help train test test-hf test-frameworks lint setup report clean \
  env-areal test-areal env-rlinf test-rlinf env-siirl test-siirl env-verl test-verl

help: ## what can be typed here
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

train: $(INSTALLED) ## train tiny_vla online in NavSim, on this machine's CPU, and write a report
	$(BIN)/vla-models train configs/navsim_quick.yaml

test: $(INSTALLED) ## run all tests with coverage
	$(BIN)/python -m pytest tests -q --cov=vla_models --cov-report=term:skip-covered --cov-fail-under=90

HF_TESTS := tests/models/test_hf_vlm.py tests/models/test_hf_vlm_families.py tests/models/vlm

test-hf: $(INSTALLED) ## run hf_vlm's tests on the other transformers versions (make test has one)
	@set -e; for version in 4.57 5.3; do \
	  python=$$(bash requirements/overlay.sh requirements/transformers-$$version.txt); \
	  export VLA_MODELS_BASE=$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])'); \
	  $$python -c 'import transformers; print("transformers", transformers.__version__)'; \
	  HF_HUB_OFFLINE=1 $$python -m pytest $(HF_TESTS) -q; \
	done

test-frameworks: test-hf test-areal test-rlinf test-siirl test-verl ## run what needs other environments than .venv

lint: $(INSTALLED) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

env-areal: ## build the environment of framework areal (once, outside the clone) and say how to use it
	@python=$$(PYTHON=$(PYTHON) bash requirements/framework_env.sh areal) && \
	  echo "PYTHONPATH=$$PWD $$python -m vla_models train configs/navsim_quick.yaml framework=areal"

test-areal: ## run the contract suite and AReaL's own trainer against the real package
	@python=$$(PYTHON=$(PYTHON) bash requirements/framework_env.sh areal) && \
	  VLA_MODELS_REQUIRE=areal PYTHONPATH=$$PWD $$python -m pytest tests/frameworks/areal -q --durations=5

env-rlinf: ## build the environment of framework rlinf (once, outside the clone) and say how to use it
	@python=$$(PYTHON=$(PYTHON) bash requirements/framework_env.sh rlinf) && \
	  echo "PYTHONPATH=$$PWD $$python -m vla_models train configs/navsim_quick.yaml framework=rlinf"

test-rlinf: ## run the contract suite and RLinf's own runner against the real package
	@python=$$(PYTHON=$(PYTHON) bash requirements/framework_env.sh rlinf) && \
	  VLA_MODELS_REQUIRE=rlinf PYTHONPATH=$$PWD $$python -m pytest tests/frameworks/rlinf -q --durations=5

env-verl: ## build the environment of framework verl (once, outside the clone) and say how to use it
	@python=$$(PYTHON=$(PYTHON) bash requirements/framework_env.sh verl) && \
	  echo "PYTHONPATH=$$PWD $$python -m vla_models train configs/navsim_quick.yaml framework=verl"

test-verl: ## run the contract suite and verl's own trainer against the real package
	@python=$$(PYTHON=$(PYTHON) bash requirements/framework_env.sh verl) && \
	  VLA_MODELS_REQUIRE=verl PYTHONPATH=$$PWD $$python -m pytest tests/frameworks/verl -q --durations=5

env-siirl: ## build the environment of framework siirl (once, outside the clone) and say how to use it
	@python=$$(PYTHON=$(PYTHON) bash requirements/framework_env.sh siirl) && \
	  echo "PYTHONPATH=$$PWD $$python -m vla_models train configs/navsim_quick.yaml framework=siirl"

test-siirl: ## run the contract suite and siiRL's own trainer against the real package
	@python=$$(PYTHON=$(PYTHON) bash requirements/framework_env.sh siirl) && \
	  VLA_MODELS_REQUIRE=siirl PYTHONPATH=$$PWD $$python -m pytest tests/frameworks/siirl -q --durations=5

setup: $(INSTALLED) ## build .venv (train and test do it by themselves)

$(INSTALLED): requirements/local.txt requirements/dev.txt requirements/ray.txt requirements/nodeps.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 was not found. Install it, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/nodeps.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	$(BIN)/vla-models doctor # shows that it works, and compiles the kernels once
	@touch $@

clean: ## remove .venv and what tests and tools left (runs/ is kept)
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov
