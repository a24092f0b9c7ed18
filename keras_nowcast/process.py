"""How a script starts and ends: the launcher's environment, signals, and the exit status.

No TensorFlow and no Horovod here: bad usage is told in well under a second.
"""

import os
import signal
import sys

from keras_nowcast.errors import InputError, Interrupted, TrainingFailed

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_STOPPED = 130  # as a shell reports a program that Ctrl-C ended
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: run again with --resume

# Horovod's launcher with Gloo, OpenMPI's mpirun, MPICH's and Intel's. Of Slurm's own variables only
# those of a step count: the others are also set for a plain python inside an allocation.
_LAUNCHER_VARIABLES = (
    ("HOROVOD_RANK", "HOROVOD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
)


def launched_as(environ=os.environ):
    """Returns (rank, world_size) as a launcher set them for this process, or None without one."""
    for rank, size in _LAUNCHER_VARIABLES:
        if rank in environ and size in environ:
            return int(environ[rank]), int(environ[size])
    if int(environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in environ:
        return int(environ["SLURM_PROCID"]), int(environ["SLURM_STEP_NUM_TASKS"])
    return None


def is_first_process():
    """True in the one process of a job that prints."""
    launched = launched_as()
    return launched is None or launched[0] == 0


class Signals:
    """Counts SIGTERM, SIGINT and SIGUSR1 while it is open, so that what is under way can end well.

    SIGUSR1 is the one that OpenMPI's mpirun hands on to its ranks, and that batch systems send as
    an early warning.

    Args:
      second_interrupt_is_now: whether a second SIGINT acts as if nothing were caught.

    Attributes:
      received: how many came.
    """

    CAUGHT = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self, second_interrupt_is_now=False):
        self._second_is_now = second_interrupt_is_now
        self.received = 0

    def __enter__(self):
        self._former = {each: signal.signal(each, self._catch) for each in self.CAUGHT}
        return self

    def __exit__(self, *exception):
        for each, handler in self._former.items():
            signal.signal(each, handler)

    def _catch(self, number, frame):
        if self._second_is_now and self.received and number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        self.received += 1


def run_script(main):
    """Calls `main()` and ends the process with the status that README.md promises.

    An InputError is one line on standard error and status 2; an Interrupted likewise with 75; a
    TrainingFailed with 1. Anything else is a fault and keeps its traceback. In a job of several
    processes only the first prints.
    """
    try:
        main()
    except InputError as error:
        _end(f"error: {error}", EXIT_BAD_INPUT)
    except Interrupted as interrupted:
        _end(str(interrupted), EXIT_INTERRUPTED)
    except TrainingFailed as failure:
        _end(f"failed: {failure}", EXIT_FAILED)
    except KeyboardInterrupt:
        _end("stopped at once; an earlier checkpoint, if there is one, is kept", EXIT_STOPPED)


def _end(message, status):
    if is_first_process():
        print(one_line(message), file=sys.stderr)
    sys.exit(status)


def one_line(message):
    """Returns a message as one line; what steers a terminal, from a file's name say, is spelled."""
    line = " ".join(message.split())
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in line)
