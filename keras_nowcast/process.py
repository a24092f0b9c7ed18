"""How a script starts and ends: the launcher's environment, signals, and the exit status.

TensorFlow and Horovod are not imported here: bad usage is reported in well under a second.
"""

import contextlib
import ctypes
import errno
import os
import signal
import sys
import time

from keras_nowcast.errors import InputError, Interrupted, TrainingFailed

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_STOPPED = 130  # as a shell reports a program that Ctrl-C ended
EXIT_PIPE_CLOSED = 141  # as a shell reports a program that SIGPIPE ended
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: run again with --resume
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

# Those of Horovod's launcher with Gloo, of Open MPI's mpirun, and of MPICH's and Intel's. Of
# Slurm's variables only those of a job step count, since the others are also set for a plain
# Python process inside an allocation.
_LAUNCHER_VARIABLES = (
    ("HOROVOD_RANK", "HOROVOD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
)


def launched_as(environ=os.environ):
    """Returns (rank, world_size) as a launcher set them, or None if no launcher started this."""
    for rank, size in _LAUNCHER_VARIABLES:
        if rank in environ and size in environ:
            return int(environ[rank]), int(environ[size])
    if int(environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in environ:
        return int(environ["SLURM_PROCID"]), int(environ["SLURM_STEP_NUM_TASKS"])
    return None


def is_first_process():
    """Returns True in the one process of a job that prints."""
    launched = launched_as()
    return launched is None or launched[0] == 0


RANK_0_S = 2.0  # seconds in which rank 0 ends the job with the same error, far more than it takes


@contextlib.contextmanager
def each_rank_reports():
    """Lets a rank report an InputError that it may have alone, before the ranks are connected.

    Rank 0 reports at once, and the launcher then ends the others. If they are not ended, they have
    an error that rank 0 does not have.
    """
    try:
        yield
    except InputError as error:
        launched = launched_as()
        if launched is not None and launched[0] > 0:
            time.sleep(RANK_0_S)
            print(one_line(f"error: rank {launched[0]}: {error}"), file=sys.stderr)
        raise


def ends_with_parent(number):
    """Returns a `preexec_fn` that makes the kernel signal the child when this process ends.

    This holds however this process ends, including SIGKILL. The kernel watches the thread that
    starts the child, so start it in the main thread. Processes that the child starts are not
    signaled.

    Args:
      number: the signal.
    """
    parent = os.getpid()
    libc = ctypes.CDLL(None, use_errno=True)

    def ask_the_kernel():
        libc.prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it died before this was set
            os.kill(os.getpid(), signal.SIGKILL)

    return ask_the_kernel


class Signals:
    """Counts SIGTERM, SIGINT and SIGUSR1 while it is open, so that current work can end cleanly.

    SIGUSR1 is the signal that Open MPI's mpirun forwards to its ranks, and that batch systems send
    as an early warning.

    Args:
      second_interrupt_is_now: whether a second SIGINT acts as if no signal were caught.

    Attributes:
      received: number of signals received.
    """

    CAUGHT = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self, second_interrupt_is_now=False):
        self._second_is_now = second_interrupt_is_now
        self.received = 0

    def __enter__(self):
        self._previous = {each: signal.signal(each, self._catch) for each in self.CAUGHT}
        return self

    def __exit__(self, *exception):
        for each, handler in self._previous.items():
            signal.signal(each, handler)

    def _catch(self, number, frame):
        if self._second_is_now and self.received and number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        self.received += 1


class Output:
    """Standard output or standard error, of which a failure does not end the work.

    A full disk or a reader that has ended is found in the middle of a training as likely as at the
    end of a short script. The first error is kept, and everything after it is discarded.

    Args:
      name: "stdout" or "stderr", which it replaces in `sys` while it is open.

    Attributes:
      error: the first OSError, or None.
    """

    def __init__(self, name):
        self._name = name
        self._stream = getattr(sys, name)
        self.error = None

    def __enter__(self):
        if self._stream is not None:  # as if it was closed before the start
            setattr(sys, self._name, self)
        return self

    def __exit__(self, *exception):
        if self._stream is not None:
            self.flush()
            setattr(sys, self._name, self._stream)

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        """Writes text; returns its length also if it is discarded."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._discard(error)
            return len(text)

    def flush(self):
        """Writes out what is buffered."""
        try:
            self._stream.flush()
        except OSError as error:
            self._discard(error)

    def _discard(self, error):
        self.error = self.error or error
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self._stream.fileno())  # also for what is still buffered
        os.close(nothing)


# A write that the disk, a quota or a limit on the size of files refused.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def run_script(main):
    """Calls `main()` and ends the process with the documented exit status.

    InputError, Interrupted and TrainingFailed each end in one line on standard error, with status
    2, 75 and 1; so does a full disk, with status 2. Any other exception is a fault and keeps its
    traceback. In a job of several
    processes only the first prints. If the output cannot be written, the work is done nevertheless;
    the status is then 1 with one line, or 141 without one if the reader of a pipe has ended.
    """
    with Output("stdout") as out, Output("stderr"):
        status = _status(main)
    if not status and isinstance(out.error, BrokenPipeError):
        status = EXIT_PIPE_CLOSED
    elif not status and out.error is not None:
        status = EXIT_FAILED
        print(f"failed: standard output cannot be written: {out.error.strerror}", file=sys.stderr)
    if status:
        sys.exit(status)


def _status(main):
    """Calls `main()` and returns the exit status, after printing the line of what ended it."""
    try:
        main()
        return 0
    except SystemExit as ended:
        return ended.code
    except InputError as error:
        message, status = f"error: {error}", EXIT_BAD_INPUT
    except Interrupted as interrupted:
        message, status = str(interrupted), EXIT_INTERRUPTED
    except TrainingFailed as failure:
        message, status = f"failed: {failure}", EXIT_FAILED
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        where = error.filename or "a file of the results"
        message = (
            f"error: the disk must have space for the results. Received: {where} "
            f"({error.strerror}); make room, and run the same command again."
        )
        status = EXIT_BAD_INPUT
    except KeyboardInterrupt:
        message = "stopped at once; an earlier checkpoint is kept if there is one"
        status = EXIT_STOPPED
    if is_first_process():
        print(one_line(message), file=sys.stderr)
    return status


def one_line(message):
    """Returns a message as one line, with control characters (of a file name, say) escaped."""
    line = " ".join(message.split())
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in line)
