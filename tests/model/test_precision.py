import keras
import pytest

from keras_nowcast.errors import InputError
from keras_nowcast.machine import cpu_has_bfloat16
from keras_nowcast.model.precision import choose_precision, set_precision


@pytest.fixture
def cpuinfo(tmp_path):
    def write(flags, key="flags"):
        path = tmp_path / "cpuinfo"
        path.write_text(f"processor\t: 0\nmodel name\t: a CPU\n{key}\t\t: {flags}\n\n" * 2)
        return path

    return write


@pytest.mark.parametrize(
    ("gpus", "flags", "policy"),
    [
        ([(7, 0)], "fpu avx2", "mixed_float16"),
        ([(8, 0), (9, 0)], "fpu avx512_bf16", "mixed_float16"),
        ([(10, 0)], "fpu", "mixed_float16"),
        ([(6, 1)], "fpu avx512_bf16", "float32"),
        ([(8, 0), (6, 0)], "fpu", "float32"),
        ([], "fpu avx512_bf16 rdpid", "mixed_bfloat16"),
        ([], "fpu amx_bf16", "mixed_bfloat16"),
        ([], "fpu avx512f", "float32"),
    ],
)
def test_auto(gpus, flags, policy, cpuinfo):
    chosen, reason = choose_precision("auto", gpus, cpuinfo(flags))
    assert chosen == policy
    assert ("GPU of compute capability" in reason) == bool(gpus)


@pytest.mark.parametrize("asked", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_what_is_asked_for_is_given(asked, cpuinfo):
    assert choose_precision(asked, [(8, 0)], cpuinfo("fpu"))[0] == asked
    policy, reason = choose_precision(asked, [], cpuinfo("fpu"))
    assert policy == asked
    assert ("tests only" in reason) == (asked == "mixed_float16")


def test_unknown_precision_is_refused():
    with pytest.raises(InputError, match="`--precision` .*mixed_bfloat16.* Received: float8"):
        choose_precision("float8", [])


def test_cpu_flags(cpuinfo, tmp_path):
    assert cpu_has_bfloat16(cpuinfo("fp asimd bf16", key="Features"))
    assert not cpu_has_bfloat16(cpuinfo("fpu avx512_bf16x"))
    assert not cpu_has_bfloat16(cpuinfo("avx512_bf16", key="bugs"))
    assert not cpu_has_bfloat16(tmp_path / "none")


def test_policy_is_set_for_layers_built_later():
    try:
        set_precision("mixed_bfloat16")
        assert keras.layers.Dense(1).compute_dtype == "bfloat16"
        assert keras.layers.Dense(1).variable_dtype == "float32"
    finally:
        set_precision("float32")
