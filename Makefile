PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
DA3_VERSION := 0.1.1

DEMO_DATA := data/rooms_teacher_data
DEMO_MANIFEST := $(DEMO_DATA)/manifest.jsonl
DEMO_PAGE := checkpoints/table_4/report.html
DEMO_SCENES := 200
DEMO_EPOCHS := 14

.PHONY: help setup demo report-check test test-gpu test-cluster bench lint clean

help:          ## show this help
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(INSTALLED)  ## create .venv with all packages and this checkout (editable)

# The stamp contains the checkout's path, so that a moved checkout is installed again.
ifneq ($(shell cat $(INSTALLED) 2>/dev/null),$(CURDIR))
.PHONY: $(INSTALLED)
endif
$(INSTALLED): pyproject.toml $(wildcard requirements*.txt)
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable '.[teachers,export,rooms,dev]'
	$(RUN) -m pip install --quiet --no-deps depth-anything-3==$(DA3_VERSION)
	$(RUN) -m pip install --quiet -r requirements-da3.txt
	echo $(CURDIR) >$@

demo: $(INSTALLED)  ## run the whole pipeline on rendered rooms: data, gate, labels, training, export, Table III, Table IV and its page
	$(RUN) rooms/prepare_rooms.py --out $(DEMO_DATA) --scenes $(DEMO_SCENES) --frames-per-scene 1 --focal-scale 0.6 1.6
	$(RUN) train.py --manifest $(DEMO_MANIFEST) --init rooms --epochs $(DEMO_EPOCHS) --batch-size 8 --lr 0.001 --zoom 0.9 1.3
	$(RUN) predict.py --checkpoint checkpoints/best.pt --input $(DEMO_DATA)/rgb --camera $(DEMO_DATA)/camera.json --data-limit 6 --output-dir predictions
	$(RUN) export_trt.py --checkpoint checkpoints/best.pt --manifest $(DEMO_MANIFEST) --camera cameras/nyu.json --skip-trt --calibration-frames 64
	$(RUN) benchmark_jetson.py --engine-dir ./engines/
	$(RUN) eval_distillation.py --checkpoint checkpoints/best.pt --compare rooms --manifest $(DEMO_MANIFEST) --report $(DEMO_PAGE)
	@echo "pictures: $(DEMO_DATA)/sam2_seg/panels/ $(DEMO_DATA)/gate/ checkpoints/table_4/ predictions/ runs/"
	@echo "page: $(DEMO_PAGE)"

report-check:  ## check the demo's page in headless Chromium: accessibility, widths, printing; needs chromium
	$(RUN) tests/check_page.py $(DEMO_PAGE)

test: $(INSTALLED)  ## run the tests
	$(RUN) -m pytest -q --numprocesses logical --maxprocesses 4 --dist loadfile

test-gpu: $(INSTALLED)  ## run the tests that need a GPU; each skipped one says why
	$(RUN) -m pytest -q -rs --no-fold-skipped -m gpu tests/gpu

test-cluster: $(INSTALLED)  ## run the jobs on a local SLURM; needs root, slurm-wlm, munge and shellcheck
	shellcheck --external-sources setup_hpc.sh train.slurm teacher_infer/teacher_infer.slurm cluster/*.sh cluster/*.slurm
	$(RUN) -m pytest -q -m cluster tests/cluster

bench: $(INSTALLED)  ## measure speed and accuracy; each script prints a table
	$(RUN) benchmarks/student_latency.py
	$(RUN) benchmarks/teacher_depth.py
	$(RUN) benchmarks/teacher_seg.py
	$(RUN) benchmarks/geometry_accuracy.py
	$(RUN) benchmarks/geometry_cost.py
	$(RUN) benchmarks/manifest_rows.py
	$(RUN) benchmarks/loader_speed.py
	$(RUN) benchmarks/bag_speed.py
	$(RUN) benchmarks/sensor_confidence.py
	$(RUN) benchmarks/packing.py
	$(RUN) benchmarks/render_speed.py
	$(RUN) benchmarks/train_throughput.py
	$(RUN) benchmarks/table_4.py --manifest $(DEMO_MANIFEST)   # needs the demo's data

lint: $(INSTALLED)  ## check style, types, imports between folders, and the docs
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports
	$(RUN) docs/check_docs.py

clean:         ## remove .venv and all outputs of the demo
	rm -rf $(VENV) data checkpoints runs engines predictions
