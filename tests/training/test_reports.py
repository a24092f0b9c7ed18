"""Reports of steps: read late, and after the same step on all ranks."""

import math

import numpy as np
import tensorflow as tf

from keras_nowcast.training.distributed import World
from keras_nowcast.training.reports import LAG, NAMES, Reports, lag_of_device


def report(loss, *names):
    return tf.constant([loss, *(float(name in names) for name in NAMES)])


def add_and_look(reports, *given):
    for each in given:
        reports.add(each)
        reports.look()


def test_a_request_is_seen_exactly_lag_steps_later():
    reports = Reports(World(0, 2), LAG)
    add_and_look(reports, report(1.0, "stop"), *[report(1.0)] * (LAG - 1))
    assert reports.agreed() == set()
    add_and_look(reports, report(1.0))
    assert reports.agreed() == {"stop"}


def test_without_a_lag_the_step_itself_is_seen():
    reports = Reports(World(0, 2))
    add_and_look(reports, report(0.5, "stop"))
    assert reports.losses == [0.5]
    assert reports.agreed() == {"stop"}


def test_only_a_gpu_lags(monkeypatch):
    assert lag_of_device() == 0
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["a GPU"])
    assert lag_of_device() == LAG


def test_at_the_end_everything_is_seen():
    reports = Reports(World(0, 2), LAG)
    add_and_look(reports, report(0.25), report(0.5, "save"))
    assert reports.losses == []
    reports.add(report(0.0), trains=False)
    reports.look(at_all=True)
    assert reports.losses == [0.25, 0.5]
    assert reports.agreed() == {"save"}


def test_steps_that_were_started_before_it_was_handled_repeat_no_request():
    reports = Reports(World(0, 2), LAG)
    add_and_look(reports, *[report(1.0, "save")] * (LAG + 1))
    assert reports.agreed() == {"save"}
    reports.handled("save")
    add_and_look(reports, *[report(1.0)] * (LAG + 1))
    assert reports.agreed() == set()
    add_and_look(reports, report(1.0, "save"), *[report(1.0)] * LAG)
    assert reports.agreed() == {"save"}


def test_the_first_step_that_failed_is_known():
    reports = Reports(World(), LAG)
    add_and_look(reports, report(1.0), report(math.nan, "fail"), *[report(math.nan, "fail")] * 3)
    assert reports.agreed() == {"fail"}
    assert reports.steps_since_failure == LAG
    reports.look(at_all=True)
    assert reports.steps_since_failure == LAG


def test_a_failure_of_another_rank_is_not_of_this_one():
    reports = Reports(World(0, 2), LAG)
    add_and_look(reports, report(1.0, "fail"), *[report(1.0)] * LAG)
    assert reports.agreed() == {"fail"}
    assert reports.steps_since_failure is None


def test_one_process_agrees_with_itself_at_once():
    reports = Reports(World())
    assert reports.agreed() == set()
    reports.ask("stop")
    assert reports.agreed() == {"stop"}
    reports.ask("save")
    reports.handled("stop")
    assert reports.agreed() == {"save"}


class TwoRanks(World):
    """A world whose other rank has twice every number of this one."""

    def average(self, tensor):
        return 1.5 * tf.convert_to_tensor(tensor)


def test_the_requests_of_a_rank_travel_with_its_count():
    reports = Reports(TwoRanks(0, 2))
    reports.ask("save")
    count, shared = reports.share(tf.constant(2.0), tf.constant(10.0))
    assert float(count) == 15.0
    assert shared.numpy().tolist() == [2.0, 0.0, 0.0, 1.5, 0.0]
    reports.handled("save")
    _, shared = reports.share(tf.constant(np.inf, tf.float32), tf.constant(10.0))
    assert shared.numpy().tolist() == [np.inf, 1.5, 0.0, 0.0, 0.0]
