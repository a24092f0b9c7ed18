"""The planner's regressions on terms and values that are known."""

import numpy as np
import pytest

from keras_nowcast.model.cost import count_unet
from keras_nowcast.study import laws


def test_the_terms_of_a_step():
    # All channels fill their blocks of 16, except the 13 frames in and the 12 out.
    cost = count_unet(32, 13, 12, 1, 16)
    computed, moved, layers, parameters = laws.step_terms(cost, "float32", 3)
    scaling, first, head, loss = (cost.layers[i] for i in (0, 1, -2, -1))
    flops = sum(layer.training_flops for layer in cost.layers)
    more = 3 / 13 * first.training_flops + 4 / 12 * head.training_flops
    assert computed == pytest.approx(3 * (flops + more))
    # Kernels are moved three times, that of the first convolution twice, for any batch size.
    kernels = 4 * (3 * cost.kernel_parameters - first.kernel_parameters)
    assert parameters == pytest.approx(kernels + 28 * cost.trainable_parameters)
    endless = float("inf")
    plain = sum(layer.training_bytes_moved("float32", endless) for layer in cost.layers)
    filled = (
        3 / 13 * scaling.training_bytes_moved("float32", endless)
        + 4 / 12 * head.training_bytes_moved("float32", endless)
        + 4 / 12 * loss.training_bytes_moved("float32", endless)
    )
    assert moved == pytest.approx(3 * (plain + filled))
    assert layers == len(cost.layers)


def test_rates_are_not_negative():
    terms = np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0], [4.0, 0.5]])
    assert laws.fit_rates(terms, [1, 2, 3, 4]) == pytest.approx([1, 0])
    falling = laws.fit_rates(terms, [3.0, 2.0, 1.0, 0.4])
    assert (falling >= 0).all() and falling[0] == 0
    # With as few values as terms, the later terms are left out.
    assert laws.fit_rates(terms[:2], [1.0, 2.0])[1] == 0


def test_a_process_takes_at_least_its_training():
    """Setup and validation took no time in the small cells; larger ones do not take less than 0."""
    points = []
    for size, seconds, wall in ((1.0, 1.0, 1.5), (2.0, 2.0, 2.1), (3.0, 3.0, 3.0), (4.0, 4.5, 4.6)):
        training = laws.Point("float32", 1, (size,), 0, 1, value=seconds)
        points.append(laws.Point("float32", 1, (1, size), 0, 1, training=training, value=wall))
    found = laws.laws_of("wall_seconds", points)
    new = laws.Point("float32", 1, (40.0,), 0, 1)
    seconds, _ = laws.laws_of("seconds", [each.training for each in points]).value(new)
    wall, _ = found.value(laws.Point("float32", 1, (1, 40.0), 0, 1, training=new))
    assert wall >= seconds > 40


def test_memory_grows_at_least_by_what_is_counted():
    """In small models the base hides the tensors: the measured peaks do not grow at all."""
    points = [laws.Point("float32", 1, (size, 1), 0, 1, value=700.0) for size in (1, 2, 4, 8)]
    found = laws.laws_of("memory_bytes", points)
    small, large = (found.value(laws.Point("float32", 1, (n, 1), 0, 1))[0] for n in (10, 1010))
    assert large - small >= 1000 - 1e-6 and small == pytest.approx(700, rel=0.02)


def test_rates_minimize_the_relative_error():
    """Of terms (1, x) at x = 1, 2, 3 and values 2, 4, 3: weights 1/4, 1/16 and 1/9, by hand."""
    terms, values = np.array([[1, 1], [1, 2], [1, 3.0]]), np.array([2, 4, 3.0])
    relative = terms / values[:, None]
    normal = np.linalg.solve(relative.T @ relative, relative.T @ np.ones(3))
    assert (normal > 0).all()
    assert laws.fit_rates(terms, values) == pytest.approx(normal, rel=1e-12)
