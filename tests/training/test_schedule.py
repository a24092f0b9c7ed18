"""The learning rate over the epochs, also of a run whose number of processes changes."""

import pytest

from keras_nowcast.errors import InputError
from keras_nowcast.training.schedule import ScaledWarmup


def rates(schedule, steps):
    return pytest.approx([float(schedule(step)) for step in steps])


def test_it_rises_to_the_rate_of_all_and_stays():
    assert [0.1, 0.25, 0.4, 0.4] == rates(ScaledWarmup(0.1, 4, 10, 2.0), (0, 10, 20, 50))
    assert [0.4] == rates(ScaledWarmup(0.1, 4, 10, 0.0), (0,))


def test_after_the_warm_up_it_falls_as_a_cosine_to_the_last_epoch():
    schedule = ScaledWarmup(0.1, 4, 10, 1.0, decay_epochs=5)
    assert [0.1, 0.4, 0.2, 0.0, 0.0] == rates(schedule, (0, 10, 30, 50, 60))


def test_a_decay_that_ends_before_it_begins_is_refused():
    with pytest.raises(InputError, match="`decay_epochs` must be above `warmup_epochs`, 2. Rec"):
        ScaledWarmup(0.1, 4, 10, 2.0, decay_epochs=2)


def test_more_processes_warm_up_again_from_what_was_reached():
    """From 2 to 4 ranks in the middle of epoch 3: from there, an epoch has half as many steps."""
    schedule = ScaledWarmup(0.1, 4, 5, 1.0, decay_epochs=6, origin=(35, 3.5, 2.0))
    without_decay = ScaledWarmup(0.1, 4, 5, 1.0, origin=(35, 3.5, 2.0))
    assert [0.2, 0.3, 0.4, 0.4] == rates(without_decay, (35, 37.5, 40, 60))
    assert [0.1, 0.0] == rates(schedule, (35, 47.5))  # half of the decay is done, then all of it
    assert float(without_decay.multiple(37.5)) == pytest.approx(3.0)


def test_fewer_processes_have_their_rate_at_once():
    assert [0.1, 0.1] == rates(ScaledWarmup(0.1, 1, 20, 1.0, origin=(7, 0.7, 1.9)), (7, 20))


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [("linear", [0.1, 0.25, 0.4, 0.4]), ("sqrt", [0.1, 0.15, 0.2, 0.2]), ("none", [0.1] * 4)],
)
def test_the_rule_says_how_the_rate_grows_with_the_ranks(scaling, expected):
    schedule = ScaledWarmup(0.1, 4, 10, 2.0, scaling=scaling)
    assert expected == rates(schedule, (0, 10, 20, 50))
    assert [expected[-1]] == rates(ScaledWarmup(0.1, 4, 10, 0.0, scaling=scaling), (0,))
    assert [0.1, 0.1] == rates(ScaledWarmup(0.1, 1, 10, 2.0, scaling=scaling), (0, 50))


def changed(scaling, ranks, from_ranks, step):
    """Returns the multiple at `step` of a run of `from_ranks`, and the schedule of the next ranks.

    Ten steps per epoch, an epoch of warm-up.
    """
    before = ScaledWarmup(0.1, from_ranks, 10, 1.0, scaling=scaling)
    reached = float(before.multiple(step))
    schedule = ScaledWarmup(0.1, ranks, 10, 1.0, origin=(step, step / 10, reached), scaling=scaling)
    return reached, schedule


@pytest.mark.parametrize(
    ("scaling", "reached", "multiples"),
    [
        ("linear", 2.0, [2.0, 5.0, 8.0, 8.0]),
        ("sqrt", 2**0.5, [2**0.5, 1.5 * 2**0.5, 8**0.5, 8**0.5]),
        ("none", 1.0, [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_each_rule_from_two_ranks_to_eight(scaling, reached, multiples):
    multiple, schedule = changed(scaling, 8, from_ranks=2, step=20)
    assert multiple == pytest.approx(reached)
    assert multiples == pytest.approx([float(schedule.multiple(s)) for s in (20, 25, 30, 90)])


@pytest.mark.parametrize(
    ("scaling", "reached", "after"),
    [("linear", 8.0, 2.0), ("sqrt", 8**0.5, 2**0.5), ("none", 1.0, 1.0)],
)
def test_each_rule_from_eight_ranks_to_two(scaling, reached, after):
    multiple, schedule = changed(scaling, 2, from_ranks=8, step=20)
    assert multiple == pytest.approx(reached)
    assert [after] * 2 == pytest.approx([float(schedule.multiple(s)) for s in (20, 90)])


def test_the_square_root_within_the_warm_up():
    """Of nine ranks half way, at twice the rate of one; four ranks end there, sixteen rise."""
    multiple, four = changed("sqrt", 4, from_ranks=9, step=5)
    assert multiple == pytest.approx(2.0)
    assert [0.2, 0.2] == rates(four, (5, 90))
    _, sixteen = changed("sqrt", 16, from_ranks=9, step=5)
    assert [0.2, 0.3, 0.4] == rates(sixteen, (5, 10, 15))


def test_keras_builds_it_again():
    schedule = ScaledWarmup(0.1, 4, 5, 1.0, 6, origin=(35, 3.5, 2.0), scaling="sqrt")
    assert ScaledWarmup.from_config(schedule.get_config()).get_config() == schedule.get_config()
    of_an_earlier_version = schedule.get_config()
    del of_an_earlier_version["scaling"]
    assert ScaledWarmup.from_config(of_an_earlier_version).scaling == "linear"
