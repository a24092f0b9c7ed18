"""What a resumed run says of another machine or other software."""

import pytest

from keras_nowcast.errors import InputError
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


class Job:
    """A world whose ranks use the given GPUs."""

    def __init__(self, *ranks):
        self.local_rank = 0
        self.ranks = ranks

    def gather(self, value):
        return [(host, [{"uuid": uuid, "name": "A100"}]) for host, uuid in self.ranks]


def test_ranks_that_share_a_gpu_are_refused_with_its_uuid():
    job = Job(("n1", "GPU-1"), ("n1", "GPU-2"), ("n1", "GPU-1"))
    with pytest.raises(InputError) as refused:
        environment.check_gpus(job)
    assert str(refused.value) == (
        "`--share-gpus` must be given for ranks to share a GPU. Received: ranks 0, 2 on n1 with "
        "A100, GPU-1; start one rank per GPU."
    )


def test_ranks_with_a_gpu_each_or_without_a_uuid():
    environment.check_gpus(Job(("n1", "GPU-1"), ("n1", "GPU-2"), ("n2", "GPU-1 of n2")))
    environment.check_gpus(Job(("n1", None), ("n1", None)))
