"""Which GPUs a process uses: from CUDA_VISIBLE_DEVICES, the local rank and NVML's list alone.

Pure functions; nothing here talks to a driver.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """A GPU that this process may talk to.

    Attributes:
      uuid: NVML's, "GPU-...".
      pci_bus_id: "00000000:65:00.0".
      name: of the product.
      speed: a number that grows with the card's arithmetic speed (cores x top clock), or None.
      mig_uuids: of its MIG devices, "MIG-...".
    """

    uuid: str
    pci_bus_id: str
    name: str
    speed: float | None = None
    mig_uuids: tuple = ()


def visible_gpus(gpus, environ):
    """Returns the GPUs that CUDA shows a process, in CUDA's order: index 0 is `/gpu:0`.

    A MIG device stands for the whole card it is cut from, whose power is all that NVML measures.

    Args:
      gpus: every Gpu that NVML lets this process open. Where a cgroup hides the others, CUDA
        numbers only these, and so does this function.
      environ: of the process; CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER are read.

    Source: the CUDA programming guide on these variables: integers, UUIDs or their beginnings
      (where only one GPU has it), MIG names; the list ends at its first invalid entry; an empty
      list hides all.
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

    Choice: CUDA does not publish the heuristic behind its default, fastest first. Cores times top
      clock, then the PCI bus, agrees with it for cards of one kind, where it is the PCI order;
      `order_is_certain` tells when that was a guess.
    """
    by_bus = sorted(gpus, key=lambda gpu: gpu.pci_bus_id.lower())
    if environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return by_bus
    return sorted(by_bus, key=lambda gpu: -(gpu.speed or 0))


def order_is_certain(gpus, environ):
    """False where integers in CUDA_VISIBLE_DEVICES count cards of several kinds, fastest first."""
    wanted = environ.get("CUDA_VISIBLE_DEVICES", "0")
    by_number = any(entry.strip().isdigit() for entry in wanted.split(","))
    kinds = {gpu.name for gpu in gpus}
    return not by_number or len(kinds) < 2 or environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"


def gpus_of_rank(visible, local_rank=None):
    """Returns the GPUs of one process: with a local rank its one of `visible`, without all.

    TensorFlow is pinned to visible[local_rank], counted round where ranks outnumber GPUs; a
    launcher that shows each task one GPU only (Slurm's --gpus-per-task) leaves that one.
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
    former_form = entry.removeprefix("MIG-").split("/")[0]  # MIG-GPU-<uuid>/<instance>/<compute>
    if former_form.startswith("GPU-"):
        return _gpu_named(former_form, in_order)
    matching = [
        gpu for gpu in in_order for mig in gpu.mig_uuids if mig.lower().startswith(entry.lower())
    ]
    return matching[0] if len(matching) == 1 else None
