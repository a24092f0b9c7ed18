"""The monitor as a Keras callback."""

import math

import keras

from keras_nowcast.energy.merge import joules_of
from keras_nowcast.energy.monitor import Monitor


class EnergyMonitor(Monitor, keras.callbacks.Callback):
    """Measures the energy of `model.fit`, or of any block of code.

        model.fit(x, y, epochs=3, callbacks=[EnergyMonitor()])   # history.history["joules"]

        with EnergyMonitor() as monitor:
            work()
        print(monitor.joules)

    In `fit`, `logs["joules"]` of an epoch is the energy of its training only. It excludes the very
    first step, which includes compilation, and the validation, which has a separate window. It is
    NaN if nothing was measured. After `fit`, `record` is as in record.json of a run, and the
    history has the joules of each epoch from it. These include the last readings of slow sensors,
    which are not known yet at the end of an epoch.

    At each boundary the callback first waits for a weight that the last step changed, so that work
    still queued on a device is inside its window.

    The arguments are those of Monitor.
    """

    def on_train_begin(self, logs=None):
        self.start()
        self._stepped = self._in_history = False
        self._epoch = None

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        if self._stepped:
            self.begin("epoch", epoch)

    def on_train_batch_end(self, batch, logs=None):
        if not self._stepped:
            self._stepped = True
            self.begin("epoch", self._epoch)

    def on_test_begin(self, logs=None):
        if self._in_fit():
            self.end("epoch")
            self.begin("validation", self._epoch)

    def on_test_end(self, logs=None):
        if self._in_fit():
            self.end("validation")

    def on_epoch_end(self, epoch, logs=None):
        self.end("epoch")
        if logs is not None:
            logs["joules"] = _or_nan(self.window_joules("epoch", epoch))
            self._in_history = True

    def on_train_end(self, logs=None):
        self._epoch = None
        result = self.stop()
        if self._in_history:
            history = self.model.history
            history.history["joules"] = [
                _or_nan(joules_of([result], "epoch", epoch)) for epoch in history.epoch
            ]

    def _in_fit(self):
        return self._sampler is not None and getattr(self, "_epoch", None) is not None

    def _wait_for_device(self):
        if self._synchronize is not None:
            self._synchronize()
        elif self.model is not None and self.model.trainable_weights:
            # Reading a weight, here the smallest, waits for the step that writes it.
            smallest = min(self.model.trainable_weights, key=lambda each: math.prod(each.shape))
            keras.ops.convert_to_numpy(smallest)


def _or_nan(joules):
    return math.nan if joules is None else joules
