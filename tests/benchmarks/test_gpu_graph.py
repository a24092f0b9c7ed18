"""What a step launches on a GPU stays within its bounds.

The graph needs the CUDA build of TensorFlow, in build/cuda or with its Python in
KERAS_NOWCAST_CUDA_PYTHON; benchmarks/gpu_graph.py says how to install it. It needs no GPU.
"""

import json
import mmap
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
MOST_OPERATIONS = 1200
OF_SHAPES = {"ConcatOffset", "Pack", "StridedSlice"}

sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests" / "training")]

import device_graph  # noqa: E402
from determinism import REFUSED  # noqa: E402


def cuda_python():
    """Returns the Python of an environment with the CUDA build, or skips the test."""
    named = os.environ.get("KERAS_NOWCAST_CUDA_PYTHON", str(ROOT / "build/cuda/bin/python"))
    if not Path(named).exists():
        pytest.skip(f"no CUDA build of TensorFlow: no {named}, see benchmarks/gpu_graph.py")
    return named


def check_bounds(row):
    assert row["operations"] <= MOST_OPERATIONS
    assert row["adam_raw"] == 90 and row["pow_sqrt"] <= 4
    assert row["is_finite"] <= 2
    assert row["predicates"] == 0
    assert row["blocking_reads"] == 0
    # Of shapes, which the host knows before it launches anything.
    assert {each.partition(":")[0] for each in row["host"].split()} <= OF_SHAPES


def test_the_recorded_graphs_are_within_their_bounds():
    newest = max((ROOT / "benchmarks" / "results" / "gpu_graph").glob("*_after.json"))
    rows = json.loads(newest.read_text())["rows"]
    assert {(row["precision"], row["capability"]) for row in rows} == {
        (precision, capability)
        for precision in ("float32", "mixed_float16", "mixed_bfloat16")
        for capability in ("7.0", "8.0", "9.0")
    }
    for row in rows:
        check_bounds(row)


def test_a_kernel_that_works_on_the_host_is_none_of_the_gpu():
    """As those of int32, which are registered for a GPU, with their memory on the host."""
    on_host = SimpleNamespace(host_memory_arg=["x", "y", "z"], constraint=[])
    sizes_on_host = SimpleNamespace(host_memory_arg=["shape"], constraint=[])
    assert not device_graph._fits(on_host, None, {"z"})
    assert device_graph._fits(sizes_on_host, None, {"output"})


@pytest.mark.slow
def test_the_graph_of_today_is_within_its_bounds():
    sizes = ("--filters", "2", "--grid", "32", "--capability", "9.0")
    command = [cuda_python(), "benchmarks/gpu_graph.py", "--print-json", *sizes]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": "."}, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert len(rows) == 3
    for row in rows:
        check_bounds(row)


@pytest.mark.slow
def test_the_list_of_refusals_is_tensorflows():
    """Each operation that TensorFlow's library refuses by name is in our list."""
    find = "import importlib.util as u; print(u.find_spec('tensorflow').origin)"
    module = subprocess.run(
        [cuda_python(), "-c", find], capture_output=True, text=True, check=True
    ).stdout.strip()
    named = set()
    with open(Path(module).parent / "libtensorflow_cc.so.2", "rb") as file:
        library = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        for before in (b"eterministic GPU implementation of ", b"in GPU implementation of "):
            at = library.find(before)
            while at >= 0:
                text = library[at + len(before) : library.find(b"\0", at)].decode("latin1")
                found = re.match(r"([A-Z]\w+) ?(is not|not|\.|$)", text)
                if found:
                    named.add(found[1])
                at = library.find(before, at + 1)
    assert {"DenseBincount", "CropAndResizeBackpropBoxes"} <= named
    kinds = {re.sub("Backprop|Gradient|Grad", "Grad", each).lower() for each in REFUSED}
    assert {re.sub("Backprop|Gradient|Grad", "Grad", each).lower() for each in named} <= kinds
