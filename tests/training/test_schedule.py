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


def test_keras_builds_it_again():
    schedule = ScaledWarmup(0.1, 4, 5, 1.0, 6, origin=(35, 3.5, 2.0))
    assert ScaledWarmup.from_config(schedule.get_config()).get_config() == schedule.get_config()
