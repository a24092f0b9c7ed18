"""A small data set that is quick to train on."""

import pytest


@pytest.fixture(scope="session")
def small_sevir(tmp_path_factory):
    """Root of a synthetic SEVIR, ten events of 32x32: 24 windows to train, 6 held out."""
    from keras_nowcast.data import synthetic

    root = tmp_path_factory.mktemp("sevir") / "small"
    synthetic.write_synthetic(root, events=10, size=32, progress=False)
    return root


@pytest.fixture
def float32_after():
    """Puts the global precision back, which a run in this process sets."""
    yield
    import keras

    keras.mixed_precision.set_global_policy("float32")
