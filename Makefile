# make install   create .venv with everything (EXTRA=gpu for NVIDIA GPUs, PYTHON=... for the Python)
# make demo      run a small study: a sweep over sizes and precisions, then its table and figures
# make test      run the tests
# make lint      check the style

.PHONY: install demo test lint

install:
	@bash install/environment.sh

demo: install
	.venv/bin/python experiments/sweep.py --preset demo
	.venv/bin/python experiments/plot_figures.py runs/

test: install
	.venv/bin/python -m pytest

lint: install
	.venv/bin/ruff check .
