"""Runs the cells of a sweep, one at a time, such that all of it can be resumed.

Several sweeps may work on one folder: only the sweep that holds the lock of a cell runs it.
"""

import shutil
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from keras_nowcast.errors import Interrupted, TrainingFailed
from keras_nowcast.process import Signals
from keras_nowcast.records import RunFolder
from keras_nowcast.sweep import outcome
from keras_nowcast.sweep.estimate import NOT_KNOWN, duration, measured_seconds, seconds_left
from keras_nowcast.sweep.launch import Launcher, attend, locked

CONSOLE = "console.log"
SCORES = "scores.csv"
WAIT_S = 1.0  # between polls of the cells that another sweep runs
_SHOWN = {"val_loss": "val_loss {:.4f}", "samples_per_second": "{:.1f} samples/s"}


@dataclass(frozen=True)
class Options:
    """What a sweep does with each cell.

    Attributes:
      launcher: a Launcher.
      timeout_s: time limit of each start of a cell, seconds; None for no limit.
      retry: True to run failed cells again.
      evaluate: True to score completed cells with evaluate.py.
    """

    launcher: Launcher
    timeout_s: float | None = None
    retry: bool = False
    evaluate: bool = False


class Sweep:
    """Cells, and the folder of their runs.

    Args:
      cells: PlacedCells.
      folder: the sweep's folder.
      options: Options.
      say: function that prints a line.
      follow: True to show the progress of the current cell in a line that is overwritten; None
        for only if standard output is a terminal.
    """

    def __init__(self, cells, folder, options, say=print, follow=None):
        self.cells = cells
        self.folder = Path(folder)
        self.options = options
        self._say = say
        self._follow = sys.stdout.isatty() if follow is None else follow
        self._signals = Signals()
        # Of cells that were run here: their time minus the time that they recorded.
        self._overheads_s = []
        # Cells that had failed before: only these are retried, each by one of several sweeps.
        self._failures = {
            cell.name: outcome.version_of_record(self.folder / cell.name)
            for cell in cells
            if self.state(cell) == outcome.FAILED
        }

    def state(self, cell):
        """Returns the state of a cell as text: new, completed, interrupted or failed."""
        return outcome.state(self.folder / cell.name)[0]

    def has_work(self, cell):
        """Returns True if anything is left to do for a cell."""
        state = self.state(cell)
        if state == outcome.FAILED:
            return self._to_retry(cell)
        return state != outcome.COMPLETED or self._to_evaluate(cell)

    def run(self):
        """Runs all cells that have work left, and waits for those that other sweeps run.

        Raises:
          InputError: the folder or the launcher cannot be used.
          Interrupted: a signal came, or a cell was interrupted; the same command resumes.
        """
        self.check_launcher()
        self._say(f"{self.summary()} in {self.folder}")
        with self._signals:
            pending = [cell for cell in self.cells if self.has_work(cell)]
            waiting = False
            while pending:
                elsewhere = [cell for cell in pending if not self.attempt(cell)]
                if len(elsewhere) == len(pending):
                    if not waiting:
                        self._say(f"waiting for {_cells(len(elsewhere))} of another sweep")
                    waiting = True
                    self._wait()
                pending = [cell for cell in elsewhere if self.has_work(cell)]
        self._say(self.summary())
        if any(self.state(cell) == outcome.INTERRUPTED for cell in self.cells):
            raise Interrupted("a cell was interrupted; run the same command again to resume it")

    def check_launcher(self):
        """Raises InputError if a cell needs the launcher and it is not installed."""
        if any(cell.cell.processes > 1 and not cell.refusal for cell in self.cells):
            self.options.launcher.check()

    def summary(self):
        """Returns a line with the number of cells in each state."""
        counts = Counter(map(self.state, self.cells))
        order = (outcome.COMPLETED, outcome.FAILED, outcome.INTERRUPTED, outcome.NEW)
        parts = [f"{counts[state]} {state}" for state in order if counts[state]]
        return f"{_cells(len(self.cells))}: {', '.join(parts)}"

    def run_one(self, cell):
        """Runs one cell, unless another sweep is running it, and returns its state.

        Raises:
          InputError, Interrupted, TrainingFailed: as `attempt`.
        """
        self.check_launcher()
        with self._signals:
            if not self.attempt(cell):
                self._say(f"{cell.name}  is being run by another sweep")
        return self.state(cell)

    def attempt(self, cell):
        """Does the work that is left for a cell; returns False if another process is running it.

        Raises:
          InputError: the folder cannot be created or locked.
          Interrupted: a signal came.
          TrainingFailed: the files of the cell cannot be written.
        """
        self._check_signals()
        with locked(self.folder / cell.name) as lock:
            if lock is None:
                return False
            if self.has_work(cell):  # under the lock, no other process can change that
                try:
                    self._settle(cell, self.folder / cell.name, lock)
                except OSError as error:
                    raise TrainingFailed(f"the sweep cannot continue: {error}") from None
        return True

    def _to_retry(self, cell):
        first = self._failures.get(cell.name)
        now = outcome.version_of_record(self.folder / cell.name)
        return self.options.retry and not cell.refusal and first == now

    def _to_evaluate(self, cell):
        return self.options.evaluate and not (self.folder / cell.name / SCORES).exists()

    def _check_signals(self):
        if self._signals.received:
            raise Interrupted(
                "interrupted; all cells are kept, run the same command again to resume"
            )

    def _wait(self):
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until:
            self._check_signals()
            time.sleep(0.1)

    def _settle(self, cell, folder, lock):
        if cell.refusal:
            outcome.write_failure(folder, cell, f"unfittable: {cell.refusal}")
            self._print_end(cell)
            return
        if self.state(cell) != outcome.COMPLETED:
            ended = self._train(cell, folder, lock)
            self._print_end(cell, ended.seconds)
        if self.state(cell) == outcome.COMPLETED and self._to_evaluate(cell):
            self._check_signals()
            self._evaluate(cell, folder, lock)

    def _train(self, cell, folder, lock):
        resume = self._prepare(folder)
        before = outcome.version_of_record(folder)
        kills = outcome.oom_kills()
        processes = cell.cell.processes
        config = cell.cell.config_in(folder, resume)
        ended = attend(
            self.options.launcher.training(config, processes),
            folder / CONSOLE,
            lock,
            self.options.launcher.stop_signal(processes),
            self._signals,
            self.options.timeout_s,
            self._live_line(cell, folder),
        )
        has_new_record = outcome.version_of_record(folder) != before
        state = self.state(cell)
        if has_new_record and state in (outcome.COMPLETED, outcome.FAILED):
            if state == outcome.COMPLETED and not resume:
                self._overheads_s.append(ended.seconds - sum(measured_seconds(folder)))
            return ended
        # A signal to this sweep, or to the cell itself, stopped the cell: it can be resumed.
        by_a_rank = outcome.ended_by_a_rank(outcome.record_of(folder))
        if ended.stopped or (has_new_record and not ended.timed_out and not by_a_rank):
            return ended
        reason = outcome.reason_of_failure(
            ended, self.options.timeout_s, kills, outcome.oom_kills()
        )
        outcome.write_failure(folder, cell, reason, ended.printed, measured=has_new_record)
        return ended

    def _prepare(self, folder):
        """Returns True if the run in a folder is to be resumed; otherwise makes room for a new run.

        Choice: a failed run is resumed only after a timeout; otherwise it starts from scratch.

        Raises:
          NewerVersion: a newer version made the run.
        """
        record = outcome.record_of(folder)
        state, reason = outcome.state(folder)
        if state == outcome.INTERRUPTED:
            if outcome.ended_by_a_rank(record):
                (folder / "record.json").unlink()  # of the previous start
            return True
        if state == outcome.FAILED and (reason or "").startswith(outcome.TIMEOUT):
            # If this sweep dies too, the cell counts as interrupted.
            (folder / "record.json").unlink()
            return (folder / "config.json").exists()
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in (".lock", CONSOLE):
                path.unlink()
        return False

    def _evaluate(self, cell, folder, lock):
        launcher = self.options.launcher
        stop = launcher.stop_signal(1)
        command = launcher.evaluation(folder)
        ended = attend(command, folder / "evaluate.log", lock, stop, self._signals)
        if ended.status and not ended.stopped:
            last = (ended.printed.strip() or "it printed nothing").splitlines()[-1]
            self._say(f"{self._place(cell)}  could not be scored: {last}")

    def _place(self, cell):
        digits = len(str(len(self.cells)))
        return f"[{self.cells.index(cell) + 1:{digits}}/{len(self.cells)}] {cell.name}"

    def _live_line(self, cell, folder):
        """Returns a function that shows the progress of a cell, at most once per second."""
        since = time.monotonic()
        shown_at = 0.0
        left = self._left(cell)

        def show():
            nonlocal shown_at
            now = time.monotonic()
            if not self._follow or now - shown_at < 1:
                return
            shown_at = now
            epochs = len(RunFolder(folder).read_epochs())
            parts = [f"epoch {epochs}/{cell.cell.value('epochs')}", duration(now - since)]
            if left is None:
                parts.append(f"time left {NOT_KNOWN}")
            elif left > now - since:  # otherwise the estimate was too short
                parts.append(f"about {duration(left - (now - since))} left for all cells")
            self._overwrite(f"{self._place(cell)}  {'  '.join(parts)}")

        return show

    def _left(self, *also):
        """Returns an estimate of the seconds that all remaining cells take, or None if unknown."""
        waiting = [cell for cell in self.cells if cell in also or self._has_training(cell)]
        finished = [cell for cell in self.cells if self.state(cell) == outcome.COMPLETED]
        overhead_s = statistics.median(self._overheads_s) if self._overheads_s else 0.0
        return seconds_left(waiting, finished, self.folder, overhead_s)

    def _has_training(self, cell):
        return not cell.refusal and self.has_work(cell) and self.state(cell) != outcome.COMPLETED

    def _print_end(self, cell, seconds=None):
        """Prints the line of a cell that has ended: its state, and its results or the reason."""
        state, reason = outcome.state(self.folder / cell.name)
        parts = [state]
        if seconds is not None:
            parts.append(duration(seconds))
        if state == outcome.COMPLETED:
            training = RunFolder(self.folder / cell.name).read_record().get("training") or {}
            for name, form in _SHOWN.items():
                if training.get(name) is not None:
                    parts.append(form.format(training[name]))
        elif reason:
            parts.append(reason)
        left = self._left()
        if left is None:
            parts.append(f"time left {NOT_KNOWN}")
        elif left:
            parts.append(f"about {duration(left)} left")
        self._overwrite("")
        self._say(f"{self._place(cell)}  {'  '.join(parts)}")

    def _overwrite(self, line):
        if self._follow:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{line[:width]}", end="", flush=True)


def _cells(number):
    return f"{number} cell{'s' * (number > 1)}"
