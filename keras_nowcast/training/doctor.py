"""Examines a machine: which devices and packages a run would use, and which problems it has."""

import importlib
import importlib.metadata
import importlib.util
import os
import shutil
import socket

from keras_nowcast.energy import choose_source
from keras_nowcast.energy.devices import gpus_of_rank, visible_gpus
from keras_nowcast.energy.nvml import NvmlUnavailable, list_gpus
from keras_nowcast.errors import InputError
from keras_nowcast.model import precision
from keras_nowcast.process import launched_as
from keras_nowcast.text_table import aligned, counted
from keras_nowcast.training import distributed, environment, user_settings

TURING = (7, 5)  # compute capability
FIRST_CUDNN_WITHOUT_VOLTA = (9, 11)
MIN_FREE_BYTES = 2**30  # for a run folder with a few checkpoints; a data set needs more


def examine(power_source="auto"):
    """Examines everything that a run depends on. In a job all ranks call it together.

    Args:
      power_source: as `--power-source`.

    Returns:
      A JSON-able dict {python, tensorflow, ..., ranks [...], problems [...]}; `problems` is a list
      of sentences, each a problem and its remedy; it is empty if training can start.
    """
    problems = _unusable_packages()
    if problems:
        return {"launched": launched_as(), "problems": problems}
    try:
        world = distributed.start()
    except InputError as error:
        return {"launched": launched_as(), "problems": [str(error)]}

    distributed.load_tensorflow(world)
    found = environment.describe(world)
    policy, why = precision.choose_precision("auto", environment.capabilities())
    free = shutil.disk_usage(".").free
    mine = _this_rank(world, power_source, free)
    found |= {
        "horovod_built_with": distributed.horovod_features(),
        "launcher": _launcher(),
        "precision_auto": policy,
        "precision_reason": why,
        "slurm": {k: v for k, v in sorted(os.environ.items()) if k in _SLURM_VARIABLES} or None,
        "free_disk_bytes": free,
        "ranks": world.gather(mine),
    }
    found["problems"] = [
        f"rank {each['rank']}: {problem}" for each in found["ranks"] for problem in each["problems"]
    ]
    return found


_SLURM_VARIABLES = {"SLURM_JOB_ID", "SLURM_JOB_NUM_NODES", "SLURM_JOB_PARTITION", "SLURM_NTASKS"}


def _unusable_packages():
    problems = []
    if importlib.util.find_spec("tensorflow") is None:
        problems.append("TensorFlow is not installed: run `make install`, or pip install -e .[cpu]")
    for name in ("tensorflow", "horovod.tensorflow"):
        try:
            if importlib.util.find_spec(name.partition(".")[0]):
                user_settings.load_keras()  # before Horovod, which imports it too
                importlib.import_module(name)
        except Exception as error:  # any error of an incompatible library
            line = " ".join(str(error).split())
            problems.append(f"{name} is installed but does not load ({line}): run `make install`")
    return problems


def _this_rank(world, power_source, free):
    problems = []
    if free < MIN_FREE_BYTES:
        problems.append(
            f"{free / 2**20:.0f} MiB of disk space are free here: a run needs a few GiB"
        )
    capabilities = environment.capabilities()
    problems += filter(None, [_cudnn_problem(capabilities, _cudnn_version())])
    try:
        source = choose_source(
            power_source,
            tensorflow_uses_gpu=bool(capabilities),
            local_rank=world.local_rank,
        )
        energy = {
            "source": source.kind,
            "reason": source.reason,
            "devices": [
                {
                    "uuid": meter.key,
                    "name": meter.name,
                    "sure_within_percent": meter.calibration_percent,
                    "note": meter.note,
                }
                for meter in source.meters
            ],
        }
    except InputError as error:
        problems.append(str(error))
        energy = {"source": "none", "reason": str(error), "devices": []}
    return {
        "rank": world.rank,
        "local_rank": world.local_rank,
        "host": socket.gethostname(),
        "nvml_gpus": _nvml_gpus(world.local_rank),
        "tensorflow_gpus": len(capabilities),
        "energy": energy,
        "problems": problems,
    }


def _cudnn_version():
    """Returns the version of the cuDNN that pip has installed, or None."""
    try:
        return importlib.metadata.version("nvidia-cudnn-cu12")
    except importlib.metadata.PackageNotFoundError:
        return None


def _cudnn_problem(capabilities, version):
    """Returns what is wrong with a version of cuDNN for GPUs of these capabilities, or None.

    Source: NVIDIA's support matrix; cuDNN 9.11 has no code for Volta and older GPUs, and a process
    that uses it there dies of a segmentation fault.
    """
    old = [each for each in capabilities if (0, 0) < each < TURING]  # (0, 0): unknown
    if not old or version is None:
        return None
    if tuple(map(int, version.split(".")[:2])) < FIRST_CUDNN_WITHOUT_VOLTA:
        return None
    capability = ".".join(map(str, min(old)))
    return (
        f"cuDNN {version} has no code for a GPU of compute capability {capability}: run `make "
        "install EXTRA=volta`, which installs cuDNN 9.10"
    )


def _nvml_gpus(local_rank):
    """Returns [{uuid, name, pci_bus_id, mig, mine}] of the GPUs that NVML shows to this rank.

    `mine` is True for the GPU that CUDA_VISIBLE_DEVICES and the local rank select.
    """
    try:
        gpus = list_gpus()
    except NvmlUnavailable:
        return []
    mine = gpus_of_rank(visible_gpus(gpus, os.environ), local_rank)
    return [
        {
            "uuid": gpu.uuid,
            "name": gpu.name,
            "pci_bus_id": gpu.pci_bus_id,
            "mig": list(gpu.mig_uuids),
            "mine": gpu in mine,
        }
        for gpu in gpus
    ]


def _launcher():
    launched = launched_as()
    if launched is None:
        return "none, so a single process"
    return f"{launched[1]} processes"


def report(found):
    """Returns the result of `examine` as lines for a person."""
    if "ranks" not in found:
        return _problem_lines(found)
    bfloat16 = "yes" if found["cpu_has_bfloat16"] else "no"
    rows = [
        ("Python", f"{found['python']}, TensorFlow {found['tensorflow']}, Keras {found['keras']}"),
        ("Horovod", _horovod_text(found)),
        ("launcher", found["launcher"]),
        (
            "processor",
            f"{found['cpu']}, {found['cores']} cores, bfloat16 instructions: {bfloat16}",
        ),
        ("precision", f"auto would be {found['precision_auto']} ({found['precision_reason']})"),
    ]
    rows.append(("settings", "; ".join(found["user_settings"]) or "none of the user's"))
    for each in found["ranks"]:
        energy = each["energy"]
        text = (
            f"{each['host']}, TensorFlow uses {counted(each['tensorflow_gpus'], 'GPU')}; energy: "
            f"{energy['source']} ({energy['reason']})"
        )
        rows.append((f"rank {each['rank']}", text))
        rows += [("", _device_line(device)) for device in energy["devices"]]
    rows += [("GPU", text) for text in _gpu_texts(found["ranks"])]
    rows.append(("Slurm", str(found["slurm"] or "not in a job")))
    rows.append(("disk", f"{found['free_disk_bytes'] / 2**30:.1f} GiB free here"))
    return [*aligned(rows, left=2).splitlines(), *_problem_lines(found)]


def _device_line(device):
    sure = device["sure_within_percent"]
    words = [device["name"] or "GPU", device["uuid"]]
    if sure is not None:
        words.append(f"uncertain by at least {sure:g}%")
    if device["note"]:
        words.append(device["note"])
    return ", ".join(words)


def _gpu_texts(ranks):
    """Returns a text per GPU of each host: its name, and which ranks use it."""
    users = {}
    for each in ranks:
        uses = "uses" if each["tensorflow_gpus"] else "would use"
        for gpu in each["nvml_gpus"]:
            key = (each["host"], gpu["uuid"])
            mine = users.setdefault(key, (gpu, []))[1]
            if gpu["mine"]:
                mine.append(f"rank {each['rank']} {uses} it")
    return [
        f"{gpu['name'] or 'GPU'}, {uuid}, {gpu['pci_bus_id'] or 'unknown PCI bus'} on {host}"
        + (f", divided into {len(gpu['mig'])} MIG devices" if gpu["mig"] else "")
        + f": {', '.join(mine) or 'no rank uses it'}"
        for (host, uuid), (gpu, mine) in users.items()
    ]


def _horovod_text(found):
    built = found["horovod_built_with"]
    if found["horovod"] is None:
        return "not installed: one process only (`make install` builds it)"
    yes = ", ".join(name for name, there in built.items() if there)
    return f"{found['horovod']}, built with {yes}"


def _problem_lines(found):
    if not found["problems"]:
        return ["training can start on this machine"]
    return [f"PROBLEM: {each}" for each in found["problems"]]
