# Both `make demo` and `make test` work as the first command in a fresh clone.
# VENV=path uses an environment that exists already, as it is; PYTHON=path makes .venv with that
# Python; TORCH_INDEX= takes torch from pip's own index (with CUDA on Linux). STACK=onedl runs any
# target on the packages of requirements/onedl.txt, in .venv-onedl.

PYTHON ?= python3
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
STACK := lite
VENV := .venv$(patsubst %,-%,$(filter-out lite,$(STACK)))
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
# The mmcv of the forks is built on the spot; a cached build may be of another torch.
CACHE_onedl := --no-cache-dir
PYTHON_MIN := $(shell sed -n "s/.*python_requires='>=\(.*\)'.*/\1/p" setup.py)
# A changed requirement changes the name of the stamp, and with it the environment.
STAMP := $(VENV)/made-from-$(shell cat requirements/*.txt setup.py | cksum | cut -d' ' -f1)

.PHONY: demo test test-fast test-onedl lint format clean clean-env environment

demo: environment
	@$(BIN)/python tools/demo.py $(if $(DATA),--data '$(DATA)') $(if $(WEIGHTS),--weights '$(WEIGHTS)')

# The tests of the dense CRF need an optional package that has to be compiled; without a compiler
# they are skipped, and the demo does not need it.
CRF := $(shell grep -o '^pydensecrf2==[0-9.]*' requirements/optional.txt)
.PHONY: crf
ifeq ($(origin VENV),file)
crf: environment
	@$(BIN)/python -c 'import pydensecrf' 2>/dev/null || $(PIP) '$(CRF)' || \
		echo "no dense CRF: its tests are skipped (a C++ compiler builds it)" >&2
else
crf: environment
endif

# Tests take one thread each; a file of them stays in one process, which makes what it shares once.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

# pytest comes last, so that its summary ends the output; every check runs, whatever fails.
test: environment crf
	@failed=''; \
	$(MAKE) --no-print-directory --keep-going lint VENV='$(VENV)' || failed="$$failed lint"; \
	$(PYTEST) || failed="$$failed pytest"; \
	test -z "$$failed" || { echo "make test: failed:$$failed" >&2; exit 1; }

test-fast: environment
	@$(PYTEST) -m 'not slow'

test-onedl:
	@$(MAKE) --no-print-directory test-fast STACK=onedl

LINTS := lint-ruff lint-format lint-types lint-imports lint-spelling
.PHONY: $(LINTS)
lint: $(LINTS)
lint-ruff: environment
	$(BIN)/ruff check .
lint-format: environment
	$(BIN)/ruff format --check .
lint-types: environment
	$(BIN)/mypy
lint-imports: environment
	$(BIN)/lint-imports
lint-spelling: environment
	$(BIN)/codespell

format: environment
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
	find . -name __pycache__ -not -path './.venv*/*' -prune -exec rm -rf {} +

clean-env:
	rm -rf .venv .venv-onedl mmdscnet.egg-info

ifeq ($(origin VENV),file)
environment: $(STAMP)
else
environment:
	@test -x '$(BIN)/python' || { \
		echo "VENV=$(VENV) holds no bin/python: give the folder of a virtual environment, or leave VENV out to have one made" >&2; exit 1; }
endif

# The stamp is the last thing written, so an interrupted run starts again from an empty folder.
# torch comes first and from its own index, because pip's default build brings gigabytes of CUDA.
$(STAMP):
	@command -v '$(PYTHON)' >/dev/null || { \
		echo "no Python at PYTHON=$(PYTHON): install Python $(PYTHON_MIN) or newer, or give its path as PYTHON=..." >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit("%d.%02d" % sys.version_info[:2] < "$(PYTHON_MIN)")' || { \
		echo "$(PYTHON) is $$('$(PYTHON)' --version 2>&1), and mmdscnet needs $(PYTHON_MIN) or newer: give another as PYTHON=..." >&2; exit 1; }
	@echo "making the environment $(VENV) (a minute or two, once)"
	@'$(PYTHON)' -m venv --clear $(VENV) >/dev/null 2>&1 || $(MAKE) --no-print-directory venv-without-ensurepip
	@echo "installing torch"
	@$(PIP) --no-deps $(if $(TORCH_INDEX),--retries 0 --timeout 30 --extra-index-url $(TORCH_INDEX)) -r requirements/torch.txt
	@echo "installing the stack and the tools"
	@$(PIP) $(CACHE_$(STACK)) -r requirements/$(STACK).txt -r requirements/tests.txt -r requirements/dev.txt
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

# Debian splits ensurepip from Python; the pip outside can put a pip into the environment.
.PHONY: venv-without-ensurepip
venv-without-ensurepip:
	@'$(PYTHON)' -m venv --clear --without-pip $(VENV)
	@PYTHONPATH="$$('$(PYTHON)' -c 'import pip, pathlib; print(pathlib.Path(pip.__file__).parents[1])')" \
		$(PIP) --ignore-installed pip
