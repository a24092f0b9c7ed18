"""Which GPUs a process uses, from CUDA_VISIBLE_DEVICES, the local rank and the list of NVML.

Pure functions, without access to a driver.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """A GPU that this process may access.

    Attributes:
      uuid: as in NVML, "GPU-...".
      pci_bus_id: "00000000:65:00.0"; None if the driver does not report it.
      name: product name; None if the driver does not report it.
      speed: a measure of the arithmetic speed of the card (cores x highest clock), or None.
      mig_uuids: UUIDs of its MIG devices, "MIG-...".
    """

    uuid: str
    pci_bus_id: str | None
    name: str | None
    speed: float | None = None
    mig_uuids: tuple = ()


def visible_gpus(gpus, environ):
    """Returns the GPUs that CUDA shows a process, in CUDA's order: index 0 is `/gpu:0`.

    A MIG device stands for the whole card that it is part of, since NVML measures only that.

    Args:
      gpus: every Gpu that NVML lets this process open. Where a cgroup hides the others, CUDA
        numbers only these, and so does this function.
      environ: environment of the process; CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER are read.

    Source: the CUDA programming guide on these variables. Entries are integers, UUIDs, unique
      beginnings of UUIDs, or MIG names. The list ends at its first invalid entry. An empty list
      hides all GPUs.
    """
    in_order = cuda_order(gpus, environ)
    wanted = environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return in_order
    found = []
    for entry in wanted.split(","):
        gpu = _gpu_named(entry.strip(), in_order)
        if gpu is None:
            break
        found.append(gpu)
    return found


def cuda_order(gpus, environ):
    """Returns `gpus` as CUDA numbers them before CUDA_VISIBLE_DEVICES.

    Choice: CUDA's default order is "fastest first", by an unpublished heuristic. Cores times
      highest clock, then the PCI bus, agrees with it for cards of one kind, where it is the PCI
      order. `why_order_is_a_guess` gives the reason if this order is a guess.
    """
    by_bus = sorted(gpus, key=lambda gpu: (gpu.pci_bus_id or "").lower())
    if environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return by_bus
    return sorted(by_bus, key=lambda gpu: -(gpu.speed or 0))


def why_order_is_a_guess(gpus, environ):
    """Returns the reason why numbers of GPUs may count them in another order, or None."""
    wanted = environ.get("CUDA_VISIBLE_DEVICES", "0")
    by_number = any(entry.strip().isdigit() for entry in wanted.split(","))
    if not by_number or len(gpus) < 2:
        return None
    if any(gpu.pci_bus_id is None for gpu in gpus):
        return (
            "the driver does not report where they are on the PCI bus, by which CUDA numbers them: "
            "name them by UUID in CUDA_VISIBLE_DEVICES to be sure that these are the right ones"
        )
    kinds = {gpu.name for gpu in gpus}
    one_kind = len(kinds) == 1 and None not in kinds
    if one_kind or environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return None
    return (
        "there are several kinds, and CUDA numbers them by an unpublished rule: set "
        "CUDA_DEVICE_ORDER=PCI_BUS_ID to be sure that these are the right ones"
    )


def gpus_of_rank(visible, local_rank=None):
    """Returns the GPUs of one process: one of `visible` if it has a local rank, otherwise all.

    TensorFlow is pinned to visible[local_rank], modulo their number if there are more ranks than
    GPUs. If a launcher shows each task only one GPU (Slurm's --gpus-per-task), it is that one.
    """
    if local_rank is None:
        return list(dict.fromkeys(visible))
    return [visible[local_rank % len(visible)]] if visible else []


def _gpu_named(entry, in_order):
    if entry.isdigit():
        return in_order[int(entry)] if int(entry) < len(in_order) else None
    if entry.startswith("MIG-"):
        return _gpu_with_mig(entry, in_order)
    if not entry.startswith("GPU-"):
        return None
    matching = [gpu for gpu in in_order if gpu.uuid.lower().startswith(entry.lower())]
    return matching[0] if len(matching) == 1 else None


def _gpu_with_mig(entry, in_order):
    older_form = entry.removeprefix("MIG-").split("/")[0]  # MIG-GPU-<uuid>/<instance>/<compute>
    if older_form.startswith("GPU-"):
        return _gpu_named(older_form, in_order)
    matching = [
        gpu for gpu in in_order for mig in gpu.mig_uuids if mig.lower().startswith(entry.lower())
    ]
    return matching[0] if len(matching) == 1 else None
