# make install   .venv with everything in it (EXTRA=gpu for NVIDIA GPUs, PYTHON=... for the Python)
# make demo      a short training run of two processes, then its figures
# make test      the tests
# make lint      style

.PHONY: install demo test lint

install:
	@bash install/environment.sh

demo: install
	.venv/bin/horovodrun -np 2 --gloo .venv/bin/python experiments/train.py \
		--grid 128 --depth 3 --filters 8 --epochs 20 --batch-per-replica 4 --schedule cosine
	.venv/bin/python experiments/plot_figures.py runs/

test: install
	.venv/bin/python -m pytest

lint: install
	.venv/bin/ruff check .
