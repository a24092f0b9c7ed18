"""What a resumed run says of another machine or other software."""

from keras_nowcast.training import environment

BEFORE = {
    "python": "3.11.1",
    "tensorflow": "2.20.0",
    "keras": "3.15.1",
    "horovod": None,
    "cpu": "A",
    "gpus": [{"uuid": "GPU-1", "name": "V100"}],
    "git_commit": "abc",
    "hosts": ["n1"],
    "user_settings": ["OMP_NUM_THREADS=2"],
}


def test_nothing_is_said_of_another_host_or_another_gpu_of_the_same_model():
    now = BEFORE | {"gpus": [{"uuid": "GPU-2", "name": "V100"}], "hosts": ["n2"]}
    assert environment.changes(BEFORE, now) is None
    assert environment.changes({}, now) is None  # the first start
    of_earlier_version = {k: v for k, v in BEFORE.items() if k != "user_settings"}
    assert environment.changes(of_earlier_version, now) is None


def test_what_changed_is_named_with_both_values():
    now = BEFORE | {
        "tensorflow": "2.21.0",
        "gpus": [{"uuid": "GPU-2", "name": "A100"}],
        "user_settings": ["OMP_NUM_THREADS=2", "TF_ENABLE_ONEDNN_OPTS=0"],
    }
    assert environment.changes(BEFORE, now) == (
        "the previous start of this run had another environment: tensorflow 2.20.0 before and "
        "2.21.0 now; gpus V100 before and A100 now; user_settings OMP_NUM_THREADS=2 before and "
        "OMP_NUM_THREADS=2, TF_ENABLE_ONEDNN_OPTS=0 now"
    )
