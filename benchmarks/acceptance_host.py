"""The stages of the acceptance run on the host: versions, input, and sums over two ranks."""

import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from acceptance_backend import load_backend
from acceptance_findings import CannotTry
from acceptance_sensors import seen_gpus

from keras_nowcast.energy.nvml import NvmlUnavailable, list_gpus, read_driver_version
from keras_nowcast.machine import cpu_model
from keras_nowcast.process import ends_with_parent
from keras_nowcast.training import doctor

PACKAGES = """keras tensorflow tensorflow-cpu jax jaxlib torch horovod numpy h5py
    nvidia-ml-py""".split()
READ_S, COPY_S = 16.0, 1.5  # of a run of ten minutes
LEAST_ROUNDS = 3  # of reading, and of copying, however long they take
COPY_BYTES = 2**28
H5PY, TIMES = "h5py, each window", "times_h5py"
HERE = Path(__file__).resolve().parent


def measure_machine(options, findings):
    """Lists versions and devices, and what doctor.py finds."""
    versions = {"python": platform.python_version(), "system": platform.platform()}
    versions |= {name: _version(name) for name in PACKAGES}
    versions |= {"cpu": cpu_model(), "cores": len(os.sched_getaffinity(0))}
    try:
        gpus = list_gpus()
        versions["nvidia driver"] = read_driver_version()
        findings.check("NVML shows a GPU", True, f"{len(gpus)}", "at least one")
        rows = [{"uuid": each.uuid, "name": each.name, "bus": each.pci_bus_id} for each in gpus]
        findings.measured("GPUs", rows)
    except NvmlUnavailable as unavailable:
        findings.check("NVML shows a GPU", False, str(unavailable), "at least one")
    findings.measured("versions", versions)
    try:
        backend = load_backend(options.backend)
    except CannotTry as error:
        findings.check("a backend of Keras uses a GPU", False, str(error), "at least one")
        return
    _check_backend(backend, options, findings)


def _check_backend(backend, options, findings):
    what, uses = "a backend of Keras uses a GPU", f"{backend.name} uses {backend.gpus} GPU(s)"
    if options.rehearse:
        findings.not_tried(what, f"a rehearsal; {uses}")
    else:
        findings.check(what, backend.gpus > 0, uses, "at least one")
    if backend.name != "tensorflow":
        findings.not_tried("doctor.py finds no problem", f"this run is on {backend.name}")
        return
    found = doctor.examine()
    findings.measured("doctor.py", [{"line": line.strip()} for line in doctor.report(found)])
    problems = "; ".join(found["problems"]) or "none"
    findings.check("doctor.py finds no problem", not found["problems"], problems, "none")


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def measure_input(options, findings):
    """Measures the reader against plain h5py, and the copy from host to device."""
    try:
        # First: memory growth must be set before tf.data starts TensorFlow's devices.
        backend, absent = load_backend(options.backend), None
    except CannotTry as error:
        backend, absent = None, error
    _measure_reader(options, findings, backend)  # needs no backend, except for tf.data
    if absent is not None:
        raise absent
    array = np.zeros(min(COPY_BYTES, int(COPY_BYTES * options.scale)), "uint8")
    backend.to_device(array)
    rates, until = [], time.monotonic() + COPY_S * options.scale
    while time.monotonic() < until or len(rates) < LEAST_ROUNDS:
        began = time.perf_counter()
        backend.to_device(array)
        rates.append(array.nbytes / (time.perf_counter() - began) / 1e9)
    what, rate = "host-to-device copy", statistics.median(rates)
    copied = {"megabytes": array.nbytes / 1e6, "gigabytes_per_s": rate}
    copied |= {"minimum": min(rates), "maximum": max(rates), "copies": len(rates)}
    if not backend.gpus:
        findings.measured("copy within the host's memory, since there is no GPU", copied)
        findings.not_tried(what, f"{backend.name} uses no GPU in this process")
    else:
        findings.measured(what, copied)
        findings.check(what, rate > 2, f"median {rate:.1f} GB/s", "above 2 GB/s")


def _measure_reader(options, findings, backend):
    needed = ("h5py", "deflate", "tqdm")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        findings.not_tried("reader", f"{' and '.join(missing)} not installed")
        return
    from input import each, h5py_each_window, ours

    from keras_nowcast.data import catalog, synthetic
    from keras_nowcast.data.sevir import window_starts

    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        root = synthetic.write_synthetic(Path(folder) / "data", options.events)
        events = catalog.read_catalog(root, say=str)
        ways = {
            H5PY: functools.partial(each, h5py_each_window, events, 1),
            "our reader, 1 thread": functools.partial(each, ours, events, 1),
            f"our reader, {threads} threads": functools.partial(each, ours, events, threads),
        }
        if backend is not None and backend.name == "tensorflow":
            ways["batches through tf.data"] = _tf_data(events, threads, options)
        seconds = _alternate(ways, READ_S * options.scale)
    windows = sum(len(window_starts(event.frames)) for event in events)
    rows = reading_rows(windows, seconds)
    findings.measured("reading compressed events, page cache warm", rows)
    best = max((row for row in rows if row["way"].startswith("our")), key=lambda row: row[TIMES])
    text = f"{best[TIMES]:.1f} times plain h5py (median; {best['times_minimum']:.1f} to "
    text += f"{best['times_maximum']:.1f} in {best['rounds']} rounds)"
    findings.check("reader", best[TIMES] > 1, text, "faster than plain h5py")


def _alternate(ways, longest_s):
    """Returns {way: seconds of each round} of ways that alternate, after a round not counted."""
    seconds = {name: [] for name in ways}
    for read in ways.values():
        read()
    until, rounds = time.monotonic() + longest_s, 0
    while time.monotonic() < until or rounds < LEAST_ROUNDS:
        for name, read in ways.items():
            began = time.perf_counter()
            read()
            seconds[name].append(time.perf_counter() - began)
        rounds += 1
    return seconds


def reading_rows(windows, seconds):
    """Returns one row per way: medians over its rounds, minima and maxima.

    Args:
      windows: how many each round reads.
      seconds: {way: seconds of each round}; a ratio is that of one round.
    """
    rows = []
    for name, times in seconds.items():
        rates = [windows / each for each in times]
        ratios = [base / each for base, each in zip(seconds[H5PY], times, strict=True)]
        row = {"way": name, "rounds": len(times), "windows_per_s": statistics.median(rates)}
        row |= {"minimum": min(rates), "maximum": max(rates), TIMES: statistics.median(ratios)}
        rows.append(row | {"times_minimum": min(ratios), "times_maximum": max(ratios)})
    return rows


def _tf_data(events, threads, options):
    """Returns a function that reads all windows through the dataset that training uses.

    It is built once, as in training.
    """
    from keras_nowcast.data.pipeline import WindowPipeline

    pipeline = WindowPipeline(
        events,
        grid=events[0].size,
        batch_per_replica=options.batch_per_replica,
        threads=threads,
        shuffle=False,  # a shuffled pass would continue with the next epoch
    )
    dataset = pipeline.dataset()

    def read():
        for _ in dataset:
            pass

    return read


def measure_allreduce(options, findings):
    """Runs two ranks that sum known values right after a long product, and checks the sums."""
    for name in ("tensorflow", "horovod"):
        if importlib.util.find_spec(name) is None:
            raise CannotTry(f"training on several ranks needs {name}, which is not installed")
    if not options.rehearse:
        gpus = len(seen_gpus())
        if gpus < 2:
            raise CannotTry(f"it needs two GPUs, and this process sees {gpus}")
    launcher = Path(sys.executable).with_name("horovodrun")
    if not launcher.exists():
        raise CannotTry(f"{launcher.name} is not next to this Python")
    out = options.out / "allreduce_ranks.json"
    out.unlink(missing_ok=True)
    side, products, rounds = (128, 4, 3) if options.rehearse else (8192, 20, 20)
    words = [sys.executable, HERE / "acceptance_ranks.py", out, side, products, rounds]
    done = subprocess.run(
        [launcher, "-np", "2", *map(str, words)],
        env=os.environ | {"KERAS_BACKEND": "tensorflow"},
        capture_output=True,
        text=True,
        preexec_fn=ends_with_parent(signal.SIGTERM),  # on which it ends the ranks
    )
    if done.returncode or not out.exists():
        text = " ".join((done.stdout + done.stderr).split())[-300:]
        findings.check("a job of two ranks", False, f"status {done.returncode}: {text}", "status 0")
        return
    found = json.loads(out.read_text())
    findings.measured("ranks", {key: found[key] for key in ("devices", "built_with", "seconds")})
    report_sums(found, rounds, options, findings)


def report_sums(found, rounds, options, findings):
    """Adds a check of the ranks' GPUs, and one of each sum; `found` is what the ranks wrote."""
    what, gpus = "each rank uses a GPU", sum("GPU" in each for each in found["devices"])
    measured = "; ".join(f"rank {rank}: {each}" for rank, each in enumerate(found["devices"]))
    if options.rehearse:
        findings.not_tried(what, f"a rehearsal; {measured}")
    else:
        findings.check(what, gpus == len(found["devices"]), measured, "a GPU on each rank")
    for row in found["sums"]:
        elements = f"{row['elements']:,} element" + "s" * (row["elements"] > 1)
        summed = row["elements"] * rounds * len(found["devices"])
        findings.check(
            f"sum over ranks right after a product: {row['dtype']}, {elements}",
            row["wrong"] == 0,
            f"{row['wrong']} of {summed:,} sums wrong, in {rounds} rounds on "
            f"{len(found['devices'])} ranks",
            "none wrong",
        )
