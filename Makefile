# make install   create .venv with everything (EXTRA=gpu or volta for NVIDIA GPUs, PYTHON=... for the Python)
# make demo      run a small study: a sweep over sizes and precisions, then its table and figures
# make test      run the tests that a change needs: those not marked slow
# make test-all  run all tests
# make backends install Keras' other backends, on which test-all then tests the network
# make docs      build the documentation site in build/site
# make lint      check the style and the format

.PHONY: install demo test test-all backends docs lint

install:
	@bash install/environment.sh

demo: install
	[ -f data/synthetic/CATALOG.csv ] || .venv/bin/python experiments/make_synthetic.py
	[ -f data/synthetic64/CATALOG.csv ] || .venv/bin/python experiments/make_dataset.py \
	  --data data/synthetic --grid 64 --out data/synthetic64
	.venv/bin/python experiments/sweep.py --preset demo
	.venv/bin/python experiments/plot_figures.py runs/demo

# Two files at a time: most tests use one core, and those of a file share what they prepare. They
# run in the order of tests/conftest.py, the longest files first.
TWO_AT_A_TIME = -n 2 --dist loadfile --no-loadscope-reorder

test: install
	.venv/bin/python -m pytest $(TWO_AT_A_TIME) -m "not slow"

test-all: install
	.venv/bin/python -m pytest $(TWO_AT_A_TIME)

backends: install
	@bash tests/backends/environments.sh

docs: .venv/docs-done
	.venv/bin/python docs/make_run_folder.py
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict --quiet
	@echo "The site is built: build/site/index.html"

# What builds the site is installed when it is first needed, and again when its list changes.
.venv/docs-done: setup.py install/constraints.txt | install
	@echo "Installing what builds the site; the log is build/docs.log."
	@mkdir -p build
	@.venv/bin/python -m pip install -c install/constraints.txt -e '.[docs]' >build/docs.log 2>&1 || \
	  { tail -n 8 build/docs.log >&2; exit 1; }
	@touch $@

lint: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
