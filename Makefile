# make install   a virtual environment in .venv with everything in it; see `make help` for the rest.
#
# Knobs: PYTHON (the interpreter that .venv is made of), VENV, MAX_JOBS (compilers at a time), PIP_FIND_LINKS (a folder
# with an mmcv wheel built for this torch, which saves its compilation), DEMO_ARGS, PYTEST_ARGS, TEST_JOBS, FAMILY
# (`upstream` or `onedl`: the maintained forks of the host libraries, in a virtual environment of their own).

FAMILY ?= upstream
ifeq ($(FAMILY),upstream)
VENV ?= .venv
REQUIREMENTS := requirements.txt
MMCV_PACKAGE := mmcv
MMCV := 2.1.0
else ifeq ($(FAMILY),onedl)
VENV ?= .venv-onedl
REQUIREMENTS := requirements-onedl.txt
MMCV_PACKAGE := onedl-mmcv
MMCV := 2.3.6
else
$(error FAMILY is '$(FAMILY)', and upstream or onedl is expected)
endif
# Test processes at a time, of one thread and about 1.5 GB each; a file's tests share their fixtures in one of them.
TEST_JOBS ?= 2

ifndef PYTHON
PYTHON := $(shell python3.11 -c '' >/dev/null 2>&1 && echo python3.11 || echo python3)
endif
ifndef MAX_JOBS
MAX_JOBS := $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
endif

PY := $(VENV)/bin/python
PIP := $(PY) -m pip
OPENCV := $(shell sed -n 's/^opencv-python==\([^ ]*\).*/\1/p' requirements-common.txt)

# Each stamp's name holds a checksum of what its step depends on, so a checkout that only touches files repeats nothing.
# The second one knows this folder too: the editable install of a copied .venv points at the folder it came from.
REQUIRED := $(VENV)/.stamp-required-$(shell cat $(REQUIREMENTS) requirements-common.txt | cksum | cut -d' ' -f1)
INSTALLED := $(VENV)/.stamp-installed-$(shell { cat $(REQUIREMENTS) requirements-common.txt pyproject.toml; echo $(MMCV); pwd; } \
	| cksum | cut -d' ' -f1)

# Written for any Python, so that an old one gets the sentence and not a syntax error.
define CHECK_PYTHON
import os, sys
if sys.version_info < (3, 11):
    sys.exit('%s is Python %d.%d, and the pinned packages need 3.11 or newer: make install PYTHON=python3.11'
             % ((sys.executable,) + sys.version_info[:2]))
import importlib.util, sysconfig
if not all(importlib.util.find_spec(name) for name in ('venv', 'ensurepip')):
    sys.exit('%s has no venv module: install it (Debian, Ubuntu: python3-venv) and run make install again'
             % sys.executable)
if not os.path.exists(os.path.join(sysconfig.get_path('include'), 'Python.h')):
    sys.exit('%s has no headers, and mmcv is compiled against them: install them (Debian, Ubuntu: python3-dev) '
             'and run make install again' % sys.executable)
endef
export CHECK_PYTHON

# Before the package is installed, too: python -c looks in this folder first.
define CHECK_MMCV
import mmcv
from lckd_mm.doctor import nms_of_two_boxes
if mmcv.__version__ != '$(MMCV)':
    raise SystemExit('mmcv is ' + mmcv.__version__)
kept = nms_of_two_boxes()
if kept != [1]:
    raise SystemExit('nms of two overlapping boxes kept %s, and [1] is right' % kept)
endef
export CHECK_MMCV

# The compiler flags replace the default ones, so they keep an -O; without debug symbols it takes half the time.
# torch takes a visible GPU as a request for CUDA ops; where no CUDA toolkit can compile them, hide the GPU.
define INSTALL_MMCV
$(PY) -c 'import sys; from torch.utils.cpp_extension import CUDA_HOME; sys.exit(CUDA_HOME is None)' 2>/dev/null \
	|| { echo "There is no CUDA toolkit: if mmcv is compiled, its ops are for the CPU."; export CUDA_VISIBLE_DEVICES=; }; \
	MMCV_WITH_OPS=1 MAX_JOBS=$(MAX_JOBS) CFLAGS='-O2 -g0 -DNDEBUG' $(PIP) install --no-deps --no-build-isolation
endef

MMCV_FAILED = echo "$(MMCV_PACKAGE) $(MMCV) could not be installed with working ops: the reason is above." >&2; exit 1

.PHONY: help install demo demo-det test test-all test-onedl lint docs clean-demo

help:  ## show this list (the default)
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  make \1	\2/p' Makefile

install: $(INSTALLED)  ## create .venv with everything that demo, test and lint need
	@echo "$(VENV) is ready: make demo, make test, or $(PY) tools/train.py CONFIG"

demo: $(INSTALLED)  ## run the demo, DEMO_ARGS='...' (installs first if need be)
	$(PY) tools/demo.py $(DEMO_ARGS)

demo-det: $(INSTALLED)  ## run the detection demo, DEMO_ARGS='...' (installs first if need be)
	$(PY) tools/demo.py --task detection $(DEMO_ARGS)

test: $(INSTALLED)  ## run the tests, PYTEST_ARGS='...' (installs first if need be)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(TEST_JOBS) --dist loadfile $(PYTEST_ARGS)

test-all: $(INSTALLED)  ## run the tests with every count in full, as CI does, PYTEST_ARGS='...' (installs first if need be)
	OMP_NUM_THREADS=1 LCKD_TEST_COUNTS=full $(PY) -m pytest -n $(TEST_JOBS) --dist loadfile $(PYTEST_ARGS)

test-onedl:  ## run the tests on the maintained forks of the host libraries, in .venv-onedl (installs them first if need be)
	@$(MAKE) FAMILY=onedl test

lint: $(INSTALLED)  ## check style and formatting (installs first if need be)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

# The theme's notice that its support ends in May 2027 says nothing about the pages.
docs: $(INSTALLED)  ## build the documentation into site/, failing on a broken link (installs first if need be)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

clean-demo:  ## remove what the demos wrote (work_dirs/demo, work_dirs/demo-det), and nothing else
	rm -rf work_dirs/demo work_dirs/demo-det

$(VENV)/.stamp-venv:
	@$(PYTHON) -c "$$CHECK_PYTHON"
	@command -v $(CXX) >/dev/null || { \
		echo "There is no C++ compiler ($(CXX)), and mmcv is compiled with it: install g++, then make install." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Both opencv packages own the folder cv2, so the headless one is laid down after the other has gone.
$(REQUIRED): $(VENV)/.stamp-venv
	@rm -f $(VENV)/.stamp-required-* $(VENV)/.stamp-installed-*
	$(PIP) install -r $(REQUIREMENTS)
	$(PIP) uninstall --yes opencv-python
	$(PIP) install --no-deps --force-reinstall opencv-python-headless==$(OPENCV)
	@touch $@

$(INSTALLED): $(REQUIRED)
	@rm -f $(VENV)/.stamp-installed-*
	@$(PY) -c "$$CHECK_MMCV" 2>/dev/null || { \
		echo "Installing $(MMCV_PACKAGE) $(MMCV). Unless pip finds a ready wheel, it is compiled now by $(MAX_JOBS) processes:"; \
		echo "that takes 10 to 20 minutes on two cores, and pip says little meanwhile."; \
		$(INSTALL_MMCV) $(MMCV_PACKAGE)==$(MMCV); } || { $(MMCV_FAILED); }
	$(PIP) install --no-deps --no-build-isolation -e .
	@$(PY) -c "$$CHECK_MMCV" || { \
		echo "This mmcv has no working ops: a hollow wheel, or one built for another torch."; \
		echo "Compiling it anew from its source: that takes 10 to 20 minutes on two cores."; \
		$(INSTALL_MMCV) --no-cache-dir --no-binary $(MMCV_PACKAGE) --force-reinstall $(MMCV_PACKAGE)==$(MMCV) \
		&& $(PY) -c "$$CHECK_MMCV"; } || { $(MMCV_FAILED); }
	@touch $@
