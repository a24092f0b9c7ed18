"""Which GPU a rank uses, given the variables that a launcher sets."""

import dataclasses

import pytest

from keras_nowcast.energy.devices import Gpu, gpus_of_rank, visible_gpus, why_order_is_a_guess


def gpu(letter, bus, name="V100", speed=7.0, mig=()):
    return Gpu(f"GPU-{letter * 4}-1", f"00000000:{bus}:00.0", name, speed, mig)


# NVML's list is in no order that CUDA knows: the buses are B, A, D, C.
A, B = gpu("a", "1A"), gpu("b", "06")
C, D = gpu("c", "3B"), gpu("d", "2F")
NODE = [A, B, C, D]
IN_CUDA_ORDER = [B, A, D, C]


@pytest.mark.parametrize(
    ("variables", "seen"),
    [
        ({}, [B, A, D, C]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, []),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, []),
        ({"CUDA_VISIBLE_DEVICES": "0"}, [B]),
        ({"CUDA_VISIBLE_DEVICES": "3,1"}, [C, A]),
        ({"CUDA_VISIBLE_DEVICES": " 2 , 0 "}, [D, B]),
        ({"CUDA_VISIBLE_DEVICES": "0,2,-1,1"}, [B, D]),  # ends at the first invalid one
        ({"CUDA_VISIBLE_DEVICES": "1,7,0"}, [A]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-cccc-1"}, [C]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-d,GPU-aa"}, [D, A]),  # first characters suffice
        ({"CUDA_VISIBLE_DEVICES": "GPU-"}, []),  # ambiguous, so invalid
        ({"CUDA_VISIBLE_DEVICES": "GPU-eeee"}, []),
        ({"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, [A]),
    ],
)
def test_visible_gpus(variables, seen):
    assert visible_gpus(NODE, variables) == seen


def test_fastest_first_and_bus_order():
    old = gpu("e", "01", "K80", speed=2.0)
    assert visible_gpus([old, A], {}) == [A, old]
    assert visible_gpus([old, A], {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}) == [old, A]
    assert visible_gpus([old, A], {"CUDA_VISIBLE_DEVICES": "1"}) == [old]


@pytest.mark.parametrize(
    ("variables", "certain"),
    [
        ({"CUDA_VISIBLE_DEVICES": "1"}, False),
        ({}, False),
        ({"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, True),
        ({"CUDA_VISIBLE_DEVICES": "GPU-aaaa"}, True),
    ],
)
def test_a_guessed_order_is_said(variables, certain):
    guess = why_order_is_a_guess([gpu("e", "01", "K80", speed=2.0), A], variables)
    assert (guess is None) is certain
    assert why_order_is_a_guess([A, B], variables) is None


@pytest.mark.parametrize("unknown", ["pci_bus_id", "name"])
def test_an_unknown_place_or_kind_makes_the_order_a_guess(unknown):
    other = dataclasses.replace(B, **{unknown: None})
    assert why_order_is_a_guess([A, other], {"CUDA_VISIBLE_DEVICES": "0"})
    assert visible_gpus([A, other], {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
    by_uuid = {"CUDA_VISIBLE_DEVICES": B.uuid}
    assert why_order_is_a_guess([A, other], by_uuid) is None
    assert visible_gpus([A, other], by_uuid) == [other]
    assert why_order_is_a_guess([other], {"CUDA_VISIBLE_DEVICES": "0"}) is None


@pytest.mark.parametrize(
    "name", ["MIG-5c8d", "MIG-5c8d-22", "MIG-GPU-aaaa-1/3/0", "MIG-GPU-aaaa/1/0"]
)
def test_mig_is_its_card(name):
    card = gpu("a", "1A", mig=("MIG-5c8d-22", "MIG-77aa-01"))
    assert visible_gpus([card, B], {"CUDA_VISIBLE_DEVICES": name}) == [card]


@pytest.mark.parametrize("name", ["MIG-0000", "MIG-", "MIG-GPU-ffff/1/0"])
def test_an_unknown_mig_device_is_invalid(name):
    card = gpu("a", "1A", mig=("MIG-5c8d-22", "MIG-77aa-01"))
    assert visible_gpus([card, B], {"CUDA_VISIBLE_DEVICES": name}) == []


@pytest.mark.parametrize(
    ("visible", "local_rank", "used"),
    [
        (IN_CUDA_ORDER, 0, [B]),
        (IN_CUDA_ORDER, 3, [C]),
        (IN_CUDA_ORDER, 5, [A]),  # more ranks than GPUs: two share one
        ([D], 2, [D]),  # Slurm shows each task one GPU only
        ([], 0, []),
        (IN_CUDA_ORDER, None, IN_CUDA_ORDER),  # a single process
        ([B, B], None, [B]),
    ],
)
def test_gpus_of_rank(visible, local_rank, used):
    assert gpus_of_rank(visible, local_rank) == used
