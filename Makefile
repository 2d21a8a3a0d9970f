# Two commands for a newcomer: `make demo` and `make test`. Each sets up what it needs.
PYTHON ?= python3
DEMO_VENV := .venv-demo
TEST_VENV := .venv
# the environment that is active, else one of its own
CLIENT_VENV := $(or $(VIRTUAL_ENV),.venv-client)
export MPLBACKEND := Agg
# a CT of a whole chest, too large for the repository; without it the benchmark leaves out its rows
BENCHMARK_LARGE ?= $(if $(CTSEG_TEST_DATA),$(wildcard $(CTSEG_TEST_DATA)/lung_tumour/pyradiomics_lung2_ct.nrrd))
PYTEST := $(TEST_VENV)/bin/python -m pytest
# processes that run tests side by side, a file at a time, in the order of tests/conftest.py: one more than two CPUs,
# since tests also wait
TEST_WORKERS ?= 3
IN_PARALLEL := -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder
# they share the CPUs: with threads of torch's own in each, they wait for each other
PYTEST_IN_PARALLEL := OMP_NUM_THREADS=1 $(PYTEST)
PIP_INSTALL = $(1)/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: help install install-server demo test test-data test-full check faults pacs images format benchmark \
	benchmark-network gpu gpu-wheels walk demo-picture imports compatibility clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

install: $(CLIENT_VENV)/bin/python  ## the client alone, into the active environment or .venv-client
	$(call PIP_INSTALL,$(CLIENT_VENV)) -c requirements/constraints.txt .
	@echo "installed: $(CLIENT_VENV)/bin/ctseg, on the PATH after: . $(CLIENT_VENV)/bin/activate"

install-server: $(CLIENT_VENV)/bin/python  ## the client and a Triton server for one machine (Linux)
	$(call PIP_INSTALL,$(CLIENT_VENV)) -c requirements/constraints.txt '.[serve]'
	$(call PIP_INSTALL,$(CLIENT_VENV)) --no-deps -r requirements/triton_server.txt
	@echo "installed: $(CLIENT_VENV)/bin/ctseg, with a server, on the PATH after: . $(CLIENT_VENV)/bin/activate"

demo: $(DEMO_VENV)/.ready  ## segment real CT through a real Triton server; pages to look at in demo_output/
	$(DEMO_VENV)/bin/python -m scripts.demo --output demo_output

test: $(TEST_VENV)/.ready  ## all tests but the slow ones
	$(PYTEST_IN_PARALLEL) -m "not full and not faults" $(IN_PARALLEL)

test-data: $(TEST_VENV)/.ready  ## the tests on real CT; CTSEG_TEST_DATA names its folder
	@test -n "$(CTSEG_TEST_DATA)" || { echo "CTSEG_TEST_DATA is not set: name the folder of real CT"; exit 2; }
	$(PYTEST) -m data

test-full: $(TEST_VENV)/.ready  ## all tests, the slow ones too
	$(PYTEST_IN_PARALLEL) -m "not faults" $(IN_PARALLEL)

check: $(TEST_VENV)/.ready  ## style, types, and what else needs no run
	$(TEST_VENV)/bin/ruff check .
	$(TEST_VENV)/bin/ruff format --check .
	$(TEST_VENV)/bin/mypy
	$(TEST_VENV)/bin/lint-imports --no-cache
	$(TEST_VENV)/bin/hadolint -c .hadolint.yaml Dockerfile.train Dockerfile.serve scripts/check_images/Dockerfile.triton
	$(TEST_VENV)/bin/shellcheck scripts/*.sh docker/*/*.sh examples/*.sh examples/clients/*.sh .ci/run
	$(TEST_VENV)/bin/yamllint -s docs/examples examples .github .pre-commit-config.yaml
	$(TEST_VENV)/bin/docker-compose -f docs/examples/compose.yaml config -q
	$(TEST_VENV)/bin/docker-compose -f docs/examples/compose.pacs.yaml config -q
	$(TEST_VENV)/bin/kubernetes-validate --strict --quiet docs/examples/kubernetes.yaml examples/kubernetes_indexed_job.yaml

faults: $(TEST_VENV)/.ready  ## kill, stop and starve runs and servers, 10 idle minutes; prints the table of faults
	$(TEST_VENV)/bin/python -m scripts.faults

pacs: $(TEST_VENV)/.ready  ## watch a real Orthanc, kill and stop both, six minutes; writes pacs_output/ (scripts/dicom_tools.sh)
	$(TEST_VENV)/bin/python -m scripts.pacs --output pacs_output

images: $(TEST_VENV)/.ready  ## build both images on stand-in bases and walk the road through them (root, podman)
	$(TEST_VENV)/bin/python -m scripts.check_images

format: $(TEST_VENV)/.ready  ## format the code
	$(TEST_VENV)/bin/ruff format .
	$(TEST_VENV)/bin/ruff check --fix .

benchmark: $(TEST_VENV)/.ready  ## time ctseg beside nnU-Net on this machine, half an hour; writes benchmark_output/
	$(TEST_VENV)/bin/python -m benchmarks --output benchmark_output $(addprefix --large ,$(BENCHMARK_LARGE))

benchmark-network: $(TEST_VENV)/.ready  ## time whole scans over links of 1 and 10 Gbit/s, a quarter of an hour (root for links)
	$(TEST_VENV)/bin/python -m benchmarks.network --output benchmark_output $(addprefix --large ,$(BENCHMARK_LARGE))

# a folder of `make gpu-wheels`: for a bare GPU machine, whose own Python has torch
WHEELS ?=
# such as --rehearse, --only runtimes, --piece-mib 45 (gpu-wheels)
GPU_FLAGS ?=
gpu: $(if $(WHEELS),,$(TEST_VENV)/.ready)  ## prove the product on this machine's GPU; WHEELS=, GPU_FLAGS=; writes gpu_output/
	$(if $(WHEELS),$(PYTHON),$(TEST_VENV)/bin/python) -m scripts.gpu_proof --output gpu_output \
		$(addprefix --wheels ,$(WHEELS)) $(GPU_FLAGS)

gpu-wheels:  ## download what a bare GPU machine lacks, into .wheels/
	$(PYTHON) -m scripts.gpu_proof.wheels --output .wheels $(GPU_FLAGS)

compatibility: $(TEST_VENV)/.ready  ## export what older nnU-Nets train, and compare, an hour or two; writes docs/compatibility.md
	$(TEST_VENV)/bin/python -m scripts.compatibility --output compatibility_output $(COMPATIBILITY_FLAGS)

demo-picture: $(TEST_VENV)/.ready  ## photograph a page of the demo for the README (scripts/browser.sh)
	$(TEST_VENV)/bin/python -m scripts.demo_picture --output docs/pictures/demo.png

walk: $(TEST_VENV)/.ready  ## type the commands of docs/walk.md on small pieces of real CT; writes walk_output/
	$(TEST_VENV)/bin/python -m scripts.walk --output walk_output

imports: $(TEST_VENV)/.ready  ## draw which room imports which, into docs/pictures/
	$(TEST_VENV)/bin/python scripts/draw_imports.py --output docs/pictures/imports.svg

clean:  ## remove the environments and all output
	rm -rf $(DEMO_VENV) $(TEST_VENV) .venv-client demo_output benchmark_output gpu_output pacs_output compatibility_output walk_output .wheels build *.egg-info

$(CLIENT_VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "ctseg needs Python 3.10 or newer; set PYTHON=...")'
	$(PYTHON) -m venv $(CLIENT_VENV)

$(DEMO_VENV)/.ready: requirements/client.txt requirements/triton_server.txt requirements/demo.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "ctseg needs Python 3.10 or newer; set PYTHON=...")'
	$(PYTHON) -m venv $(DEMO_VENV)
	$(call PIP_INSTALL,$(DEMO_VENV)) -r requirements/demo.txt
	$(call PIP_INSTALL,$(DEMO_VENV)) --no-deps -r requirements/triton_server.txt -e .
	touch $@

$(TEST_VENV)/.ready: $(wildcard requirements/*.txt) pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "ctseg needs Python 3.10 or newer; set PYTHON=...")'
	@echo "installing torch, nnU-Net, MONAI and the tools of the checks into $(TEST_VENV), once: 3 GB on disk with a CPU"
	@echo "build of torch, several more where pip takes a CUDA build; two minutes on a fast connection"
	$(PYTHON) -m venv $(TEST_VENV)
	$(call PIP_INSTALL,$(TEST_VENV)) -r requirements/test.txt -r requirements/images.txt
	$(call PIP_INSTALL,$(TEST_VENV)) --no-deps -r requirements/triton_server.txt -e .
	@if $(TEST_VENV)/bin/python -c 'import sys, torch; sys.exit(torch.version.cuda is not None)'; then \
		$(call PIP_INSTALL,$(TEST_VENV)) --no-deps -r requirements/torchvision_cpu.txt; fi
	for version in rtx 10 11; do \
		$(call PIP_INSTALL,$(TEST_VENV)) --no-deps --upgrade --target $(TEST_VENV)/tensorrt/$$version \
			-r requirements/tensorrt_$$version.txt || exit 1; done
	touch $@
