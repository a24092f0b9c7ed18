"""Metadata, dependencies and extras. Versions that were tested: install/constraints.txt."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "keras_nowcast" / "__init__.py").read_text(), re.MULTILINE
)[1]
README = ROOT / "README.md"

# TensorFlow is in no list here but in the extras `cpu` and `gpu`: its two distributions share a
# folder, so that a plain dependency on one of them would break the other. `make install` chooses
# one of them. Training needs TensorFlow; the rooms energy/ and model/ do not, and an installation
# without an extra serves them on Keras' JAX or PyTorch backend, which the user installs. Horovod is
# in no list either: it cannot be had from pip alone, install/horovod.sh builds it.
INSTALL_REQUIRES = [
    "numpy>=1.26",
    "h5py>=3.11",  # SEVIR's files
    "deflate>=0.9",  # libdeflate: SEVIR's chunks 2.5 times as fast as zlib; 0.8 keeps the GIL
    "jinja2>=3.1",  # report.html from a template that escapes what comes from files
    "keras>=3.12",  # the network and its training loop, on TensorFlow
    "matplotlib>=3.8",  # figures
    "nvidia-ml-py>=12.535",  # power and energy of NVIDIA GPUs; pure Python, harmless without a GPU
    "scipy>=1.12",  # non-negative least squares of the planner, Student's t of the claims
    "tqdm>=4.66",  # progress bars
]
EXTRAS_REQUIRE = {
    "cpu": ["tensorflow-cpu>=2.18"],
    "gpu": ["tensorflow[and-cuda]>=2.18"],
    "baselines": ["pysteps>=1.10"],  # an independent optical flow and verification to compare with
    "tensorboard": ["tensorboard>=2.18"],  # --tensorboard; TensorFlow no longer brings it along
    "dev": [
        "hypothesis>=6.100",  # data sets of any layout, compared with h5py
        "jsonschema>=4.20",  # checks the records that the tests write by record.schema.json
        "pytest>=8",
        "pytest-xdist>=3.5",  # two test files at a time, since most tests use one core
        "ruff>=0.6",
    ],
    # `make docs` installs these; no other command needs them.
    "docs": [
        "mkdocs>=1.6,<2",  # the site from docs/; 2.0 drops the plugins below
        "mkdocs-material>=9.7",  # its theme, with a search that needs no server
        "mkdocstrings[python]>=1.0",  # the API pages, from docstrings, without importing anything
    ],
}

setup(
    name="keras_nowcast",
    version=VERSION,
    description="What it costs to train encoder-decoder networks for precipitation nowcasting, in "
    "compute, time and energy, and what forecast skill that cost buys",
    long_description=README.read_text() if README.exists() else "",
    long_description_content_type="text/markdown",
    author="keras_nowcast developers",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["keras_nowcast", "keras_nowcast.*"]),
    package_data={
        "keras_nowcast": ["record.schema.json"],
        "keras_nowcast.report": ["templates/*"],
        "keras_nowcast.verification": ["published.csv"],
    },
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Atmospheric Science",
    ],
)
