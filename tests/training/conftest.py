"""A small data set that is quick to train on."""

import pytest


@pytest.fixture(scope="session")
def small_sevir(tmp_path_factory):
    """Root of a synthetic SEVIR, ten events of 32x32: 24 windows for training, 6 for the test."""
    from keras_nowcast.data import synthetic

    root = tmp_path_factory.mktemp("sevir") / "small"
    synthetic.write_synthetic(root, events=10, size=32, progress=False)
    return root


@pytest.fixture
def float32_after():
    """Restores the global precision that a run in this process sets."""
    yield
    import keras

    keras.mixed_precision.set_global_policy("float32")
