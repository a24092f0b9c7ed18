"""Worker: a training run in which something goes wrong on one rank.

Usage: ranks_fault.py WHAT RANK STEP flags of train.py...

After STEP steps, rank RANK is killed, is stopped, gets a SIGTERM, waits for its input indefinitely,
or runs out of memory and gets a SIGTERM before it has reported that. Everything else is the real
run.
"""

import os
import signal
import sys
import time

STARTED = time.monotonic()


def main():
    what, rank, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    from keras_nowcast.command_line import parse_config
    from keras_nowcast.process import launched_as
    from keras_nowcast.training import callbacks, trainer

    def act():
        if what == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        if what == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        if what == "told":
            raise MemoryError("Unable to allocate 8.00 EiB")
        if what == "input":
            read_for_ever()

    def end_before_the_word():
        original = trainer.Watchdog.__exit__

        def told_to_end(self, *exception):
            os.kill(os.getpid(), signal.SIGTERM)
            return original(self, *exception)

        trainer.Watchdog.__exit__ = told_to_end

    def read_for_ever():
        from keras_nowcast.data import sevir

        sevir.read_event = lambda *arguments: time.sleep(3600)

    if launched_as() is None or launched_as()[0] == rank:
        if what == "told":
            end_before_the_word()
        original = callbacks.EpochRecorder.on_train_batch_end

        def on_train_batch_end(self, batch, logs=None):
            original(self, batch, logs)
            if self._progress.steps == step:
                act()

        callbacks.EpochRecorder.on_train_batch_end = on_train_batch_end
    del sys.argv[1:4]
    trainer.train(parse_config(__doc__), STARTED)


if __name__ == "__main__":
    from keras_nowcast.process import run_script

    run_script(main)
