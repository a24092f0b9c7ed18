"""The choice of a power source, and its reason."""

import pytest
from stub_nvml import Device

from keras_nowcast.energy.source import choose_source, first_users
from keras_nowcast.errors import InputError

NODE = [
    Device(uuid="GPU-bb", bus="00000000:65:00.0"),
    Device(uuid="GPU-aa", bus="00000000:1A:00.0"),
]


@pytest.fixture
def no_driver(stub_driver):
    with stub_driver([], init_fails=True).loaded_here():
        yield


@pytest.fixture
def two_gpus(stub_driver):
    with stub_driver(NODE).loaded_here():
        yield


@pytest.fixture
def rapl_tree(tmp_path):
    zone = tmp_path / "powercap" / "intel-rapl:0"
    zone.mkdir(parents=True)
    for name, text in (("name", "package-0"), ("energy_uj", "5"), ("max_energy_range_uj", "9")):
        (zone / name).write_text(text)
    return zone.parent


def choose(asked="auto", uses=True, rapl_root="nowhere", environ=(), **more):
    more.update(rapl_root=rapl_root, environ=dict(environ), host="n1")
    return choose_source(asked, tensorflow_uses_gpu=uses, **more)


def test_auto_takes_the_gpu_that_tensorflow_uses(two_gpus):
    source = choose(local_rank=1)
    assert (source.kind, source.devices) == ("nvml", [("n1", "GPU-bb")])


def test_auto_does_not_book_idle_gpus(two_gpus, rapl_tree):
    source = choose(uses=False)
    assert (source.kind, source.meters) == ("none", ())
    assert "TensorFlow does not use the 2 GPU(s)" in source.reason
    source = choose(uses=False, rapl_root=rapl_tree)
    assert (source.kind, source.devices) == ("rapl", [("n1", "package-0")])
    assert "TensorFlow does not use" in source.reason


def test_auto_without_any_sensor(no_driver):
    source = choose(uses=False)
    assert source.kind == "none"
    assert "no NVIDIA driver responds" in source.reason
    assert "no RAPL zones" in source.reason


@pytest.mark.parametrize("asked", ["auto", "auto-or-estimate"])
def test_a_gpu_without_nvml_is_not_booked_as_its_processor(no_driver, rapl_tree, asked):
    """So on every AMD GPU: the CPU packages are not what trained."""
    source = choose(asked, uses=True, rapl_root=rapl_tree)
    assert (source.kind, source.meters) == ("none", ())
    assert "no NVIDIA driver responds" in source.reason
    assert "TensorFlow uses a GPU, and the energy of the CPU packages alone" in source.reason


@pytest.mark.parametrize("asked", ["rapl", "estimate"])
@pytest.mark.parametrize("uses", [True, False])
def test_what_is_not_in_the_joules_of_processors(no_driver, rapl_tree, asked, uses):
    source = choose(asked, uses=uses, rapl_root=rapl_tree, watts_per_core=6.0)
    assert source.kind == asked
    assert source.not_included == (("the GPUs that TensorFlow uses",) if uses else ())
    assert ("TensorFlow uses a GPU, which is not in it" in source.reason) == uses


def test_auto_without_pynvml(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    assert "nvidia-ml-py is not installed" in choose().reason


def test_nvml_is_forced(two_gpus):
    assert choose("nvml", uses=False).devices == [("n1", "GPU-aa"), ("n1", "GPU-bb")]


def test_variables_pick_the_gpu(two_gpus):
    assert choose(environ={"CUDA_VISIBLE_DEVICES": "1"}).devices == [("n1", "GPU-bb")]
    source = choose(environ={"CUDA_VISIBLE_DEVICES": ""})
    assert source.kind == "none" and "CUDA_VISIBLE_DEVICES=''" in source.reason


def test_a_cgroup_hides_gpus_and_renumbers(stub_driver):
    hidden = Device(uuid="GPU-aa", bus="00000000:1A:00.0", hidden=True)
    with stub_driver([NODE[0], hidden]).loaded_here():
        assert choose(environ={"CUDA_VISIBLE_DEVICES": "0"}).devices == [("n1", "GPU-bb")]


def test_cards_of_several_kinds_are_said(stub_driver):
    slow = Device(uuid="GPU-cc", bus="00000000:01:00.0", name="Stub K80", cores=100)
    with stub_driver([NODE[0], slow]).loaded_here():
        source = choose(environ={"CUDA_VISIBLE_DEVICES": "0"})
        assert source.devices == [("n1", "GPU-bb")]
        assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in source.reason


def test_mig_says_whole_card(stub_driver):
    card = Device(uuid="GPU-aa", mig=("MIG-1111", "MIG-2222"))
    with stub_driver([card]).loaded_here():
        source = choose(environ={"CUDA_VISIBLE_DEVICES": "MIG-2222"})
        assert source.devices == [("n1", "GPU-aa")]
        assert "the whole card" in source.meters[0].note and "the whole card" in source.reason


def test_asked_for_and_not_there(no_driver):
    with pytest.raises(InputError, match=r"`--power-source` nvml cannot be used: no NVIDIA driver"):
        choose("nvml")
    with pytest.raises(InputError, match=r"`--power-source` rapl cannot be used: no RAPL zones"):
        choose("rapl")


@pytest.mark.parametrize("watts", [0.0, -3.0, float("nan"), 5000.0])
def test_nonsense_watts(watts):
    with pytest.raises(InputError, match="`--watts-per-core`"):
        choose("estimate", watts_per_core=watts)


def test_estimate_is_marked():
    source = choose("estimate", watts_per_core=6.0, local_rank=1)
    assert "estimate" in source.reason and "6 W per core" in source.meters[0].note
    assert source.devices == [("n1", "estimate: CPU time of process 1")]


def test_unknown_source():
    with pytest.raises(InputError, match="must be one of"):
        choose("wall plug")


def test_each_device_has_one_reader():
    a, b = ("n1", "GPU-a"), ("n1", "GPU-b")
    other_host = ("n2", "GPU-a")
    assert first_users([[a], [a], [b], [other_host]]) == [[a], [], [b], [other_host]]


def test_only_keeps_a_share(two_gpus):
    assert choose().only([("n1", "GPU-bb")]).devices == [("n1", "GPU-bb")]


def test_auto_or_estimate_measures_where_it_can(no_driver, rapl_tree):
    assert choose("auto-or-estimate", uses=False, rapl_root=rapl_tree).kind == "rapl"


def test_auto_or_estimate_estimates_where_there_is_no_sensor(no_driver):
    source = choose("auto-or-estimate", uses=False)
    assert source.kind == "estimate"
    assert source.reason.startswith("an estimate was requested: ") and "RAPL: " in source.reason


def test_the_power_of_a_gpu_is_not_estimated(no_driver):
    source = choose("auto-or-estimate", uses=True)
    assert source.kind == "none" and "the power of a GPU is not estimated" in source.reason
