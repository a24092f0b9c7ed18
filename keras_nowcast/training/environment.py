"""The machine and software of a run: the content of environment.json."""

import os
import platform
import socket
import subprocess
from pathlib import Path

from keras_nowcast.energy.devices import gpus_of_rank, visible_gpus
from keras_nowcast.energy.nvml import NvmlUnavailable, list_gpus
from keras_nowcast.errors import InputError
from keras_nowcast.machine import cpu_has_bfloat16, cpu_model
from keras_nowcast.training import distributed, gpu_options, user_settings

# In these, a resumed run can have other results or another cost.
_COMPARED = (
    "python",
    "tensorflow",
    "keras",
    "horovod",
    "cpu",
    "gpus",
    "git_commit",
    "user_settings",
    "onednn",
    "tf32",
)


def describe(world):
    """Returns the `environment` part of record.json; all ranks call it.

    Returns:
      A dict {python, tensorflow, keras, horovod, hosts, cpu, cores, cpu_has_bfloat16, gpus
      [{uuid, name}], world_size, git_commit, slurm_job_id, ...}. A value that does not apply is
      None. sacct lists a job, also a task of an array, under slurm_job_id as JobIDRaw, and its
      starts with --duplicates.
    """
    import keras
    import tensorflow as tf

    seen = _gpus_of_ranks(world)
    gpus = {}
    for rank, (host, mine) in enumerate(seen):
        # Ranks can share a GPU; without its UUID this cannot be detected.
        gpus |= {(host, gpu["uuid"] or rank): gpu for gpu in mine}
    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "horovod": distributed.horovod_version(),
        "hosts": list(dict.fromkeys(host for host, _ in seen)),
        "cpu": cpu_model() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "cpu_has_bfloat16": cpu_has_bfloat16(),
        "gpus": list(gpus.values()),
        "world_size": world.size,
        "git_commit": _git_commit(),
        **_slurm_job(),
        "user_settings": [f"{name}={value}" for name, value in user_settings.found().items()],
        "onednn": user_settings.uses_onednn(),
        **gpu_options.describe(),
    }


def _gpus_of_ranks(world):
    """Returns (host, [{uuid, name}]) of each rank, in order of rank."""
    return world.gather((socket.gethostname(), _gpus(world.local_rank)))


def check_gpus(world):
    """Checks that no two ranks use the same GPU; all ranks call it together.

    Ranks on GPUs without a UUID, that is without NVML, are not compared.

    Raises:
      InputError: they do; every rank raises it.
    """
    users = {}
    for rank, (host, mine) in enumerate(_gpus_of_ranks(world)):
        for gpu in mine:
            if gpu["uuid"]:
                users.setdefault((gpu["uuid"], gpu["name"], host), []).append(rank)
    for (uuid, name, host), ranks in users.items():
        if len(ranks) > 1:
            raise InputError(
                "`--share-gpus` must be given for ranks to share a GPU. Received: ranks "
                f"{', '.join(map(str, ranks))} on {host} with {name}, {uuid}; start one rank per "
                "GPU."
            )


def _slurm_job():
    """Returns Slurm's names for this job; all None if it does not run under Slurm."""
    job = os.environ.get("SLURM_JOB_ID")
    return {
        "slurm_job_id": job,
        "slurm_array_job_id": os.environ.get("SLURM_ARRAY_JOB_ID"),
        "slurm_array_task_id": os.environ.get("SLURM_ARRAY_TASK_ID"),
        "slurm_nodes": os.environ.get("SLURM_JOB_NODELIST"),
        "slurm_restart_count": job and int(os.environ.get("SLURM_RESTART_COUNT", 0)),
    }


def in_short(described):
    """Returns the result of `describe` as one line."""
    gpus = ", ".join(gpu["name"] or "GPU" for gpu in described["gpus"]) or "no GPU"
    return (
        f"Python {described['python']}, TensorFlow {described['tensorflow']}, Keras "
        f"{described['keras']}, Horovod {described['horovod'] or 'not installed'}; "
        f"{len(described['hosts'])} host(s), {described['cpu']}, {described['cores']} cores, {gpus}"
    )


def changes(before, now):
    """Returns what of the software and the machine has changed between two starts, as one line.

    Args:
      before: the `environment` of the previous start; of an earlier version it has fewer keys.
      now: what `describe` returned.

    Returns:
      None if it is the same in everything that can change results or cost.
    """
    changed = []
    for name in ("onednn", "tf32"):
        if before and name not in before and name in now:
            changed.append(f"{name} unknown before and {_text(now[name])} now")
    for name in _COMPARED:
        if name in before and _text(before[name]) != _text(now[name]):
            changed.append(f"{name} {_text(before[name])} before and {_text(now[name])} now")
    if not changed:
        return None
    return "the previous start of this run had another environment: " + "; ".join(changed)


def _text(value):
    """Returns a value as text; of GPUs the models alone, since a job may get any of them."""
    if isinstance(value, list):
        names = [each.get("name") if isinstance(each, dict) else each for each in value]
        return ", ".join(map(str, names)) or "none"
    return "none" if value is None else str(value)


def capabilities():
    """Returns the compute capability (major, minor) of each GPU TensorFlow uses in this process."""
    import tensorflow as tf

    details = map(tf.config.experimental.get_device_details, tf.config.get_visible_devices("GPU"))
    return [each.get("compute_capability", (0, 0)) for each in details]


def _gpus(local_rank):
    """Returns [{uuid, name}] of the GPUs that TensorFlow uses here.

    The UUID is None if NVML is not available.
    """
    import tensorflow as tf

    used = tf.config.get_visible_devices("GPU")
    try:
        known = gpus_of_rank(visible_gpus(list_gpus(), os.environ), local_rank) if used else []
        return [{"uuid": gpu.uuid, "name": gpu.name} for gpu in known]
    except NvmlUnavailable:
        details = map(tf.config.experimental.get_device_details, used)
        return [{"uuid": None, "name": each.get("device_name")} for each in details]


def _git_commit():
    """Returns the commit of the checkout that holds this package, with `+` if files were changed.

    None if there is no checkout.
    """
    here = Path(__file__).parent
    try:
        commit = _git(here, "rev-parse", "HEAD")
        return commit + ("+" if _git(here, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder, *words):
    done = subprocess.run(
        ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()
