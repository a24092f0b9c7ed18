"""The stages of the acceptance run on the host: versions, input, and sums over two ranks."""

import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from acceptance_backend import load_backend
from acceptance_findings import CannotTry

from keras_nowcast.energy.devices import visible_gpus
from keras_nowcast.energy.nvml import NvmlUnavailable, list_gpus, read_driver_version
from keras_nowcast.machine import cpu_model
from keras_nowcast.training import doctor

PACKAGES = """keras tensorflow tensorflow-cpu jax jaxlib torch horovod numpy h5py
    nvidia-ml-py""".split()
READ_S, COPY_S = 4.0, 1.5  # of a run of ten minutes
COPY_BYTES = 2**28
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
        findings.not_tried("a backend of Keras uses a GPU", error)
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
    backend = load_backend(options.backend)
    _measure_reader(options, findings, backend)
    array = np.zeros(min(COPY_BYTES, int(COPY_BYTES * options.scale)), "uint8")
    backend.to_device(array)
    began, copies = time.monotonic(), 0
    while (seconds := time.monotonic() - began) < COPY_S * options.scale or not copies:
        backend.to_device(array)
        copies += 1
    rate = copies * array.nbytes / seconds
    findings.measured("host to device, gigabytes per second", rate / 1e9)
    what = "host-to-device copy"
    if not backend.gpus:
        findings.not_tried(what, f"{backend.name} uses no GPU in this process")
    else:
        findings.check(what, rate > 2e9, f"{rate / 1e9:.1f} GB/s", "above 2 GB/s")


def _measure_reader(options, findings, backend):
    needed = ("h5py", "deflate", "tqdm")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        findings.not_tried("reader", f"{' and '.join(missing)} not installed")
        return
    from input import h5py_each_window, ours

    from keras_nowcast.data import catalog, synthetic

    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        root = synthetic.write_synthetic(Path(folder) / "data", options.events)
        events = catalog.read_catalog(root, say=str)
        ways = {
            "h5py, each window": (h5py_each_window, 1),
            "our reader, 1 thread": (ours, 1),
            f"our reader, {threads} threads": (ours, threads),
        }
        rates = {name: _read(events, *way, options) for name, way in ways.items()}
        if backend.name == "tensorflow":
            rates["batches through tf.data"] = _through_tf_data(events, threads, options)
    base = rates["h5py, each window"]
    findings.measured(
        "reading compressed events, page cache warm",
        [
            {"way": name, "windows_per_s": rate, "times_h5py": rate / base}
            for name, rate in rates.items()
        ],
    )
    best = max(rate for name, rate in rates.items() if name.startswith("our"))
    findings.check(
        "reader", best > base, f"{best / base:.1f} times plain h5py", "faster than plain h5py"
    )


def _read(events, function, threads, options):
    """Returns windows per second of reading all events again and again."""
    from input import each

    from keras_nowcast.data.sevir import window_starts

    windows = sum(len(window_starts(event.frames)) for event in events)
    each(function, events, threads)
    began, rounds = time.monotonic(), 0
    while (seconds := time.monotonic() - began) < READ_S * options.scale or not rounds:
        each(function, events, threads)
        rounds += 1
    return rounds * windows / seconds


def _through_tf_data(events, threads, options):
    """Returns windows per second of the dataset that training takes its batches from."""
    from keras_nowcast.data.pipeline import WindowPipeline

    pipeline = WindowPipeline(
        events,
        grid=events[0].size,
        batch_per_replica=options.batch_per_replica,
        threads=threads,
        shuffle=False,  # a shuffled pass would continue with the next epoch
    )
    began, windows = time.monotonic(), 0
    while (seconds := time.monotonic() - began) < READ_S * options.scale or not windows:
        windows += sum(len(x) for x, _ in pipeline.dataset())
    return windows / seconds


def measure_allreduce(options, findings):
    """Runs two ranks that sum known values right after a long product, and checks the sums."""
    for name in ("tensorflow", "horovod"):
        if importlib.util.find_spec(name) is None:
            raise CannotTry(f"training on several ranks needs {name}, which is not installed")
    if not options.rehearse:
        try:
            gpus = len(visible_gpus(list_gpus(), os.environ))
        except NvmlUnavailable as unavailable:
            raise CannotTry(str(unavailable)) from None
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
    )
    if done.returncode or not out.exists():
        text = " ".join((done.stdout + done.stderr).split())[-300:]
        findings.check("a job of two ranks", False, f"status {done.returncode}: {text}", "status 0")
        return
    found = json.loads(out.read_text())
    findings.measured("ranks", {key: found[key] for key in ("devices", "built_with", "seconds")})
    for row in found["sums"]:
        findings.check(
            f"sum over ranks right after a product: {row['dtype']}, {row['elements']} elements",
            row["wrong"] == 0,
            f"{row['wrong']} wrong elements in {rounds} rounds",
            "none",
        )
