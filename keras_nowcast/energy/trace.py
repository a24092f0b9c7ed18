"""power.csv: what every device drew, a row a reading, written while it happens."""

import csv
import os
import time
from pathlib import Path

from keras_nowcast import columns, schema
from keras_nowcast.files import written_whole

COLUMNS = schema.names(columns.POWER)
_FLUSH_EVERY_S = 0.5


class PowerTrace:
    """Appends rows to a trace that other processes of this host may append to as well.

    Rows are written at least once a second, whole and in one call on a file opened for appending,
    so processes of one host do not cut into each other's and a crash loses the last second only.
    Processes of another host need a file of their own (`trace_path`): appending over a network
    file system is not safe between hosts.

    Attributes:
      problem: why writing stopped (a full disk), or None. It never raises.
    """

    def __init__(self, path, zero_unix_s):
        """Opens the trace; `zero_unix_s` is the moment that `time_s` counts from."""
        self.problem = None
        # One clock for all rows, which no adjustment of the system's time can turn back.
        self._offset_s = time.time() - time.monotonic() - zero_unix_s
        self._rows = []
        self._flushed_s = time.monotonic()
        self._file = None
        try:
            _create_with_header(Path(path))
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
            if _last_byte(path) != b"\n":  # a crash or a full disk cut the last row short
                os.write(self._file, b"\n")
        except OSError as error:
            self.problem = f"power trace: {error}"

    def time_s(self, monotonic_s):
        """Returns a moment of the monotonic clock in the trace's time."""
        return monotonic_s + self._offset_s

    def add(self, monotonic_s, host, device, watts, state):
        """Adds the row of one device; `watts` and the fields of `state` may be None."""
        fields = (
            f"{self.time_s(monotonic_s):.3f}",
            host,
            device,
            _figure(watts, 3),
            _figure(state.utilization_percent, 0),
            _figure(state.memory_mib, 1),
            _figure(state.sm_mhz, 0),
            _figure(state.temperature_c, 0),
            state.throttle_reasons or "",
        )
        self._rows.append(",".join(fields))
        if time.monotonic() - self._flushed_s >= _FLUSH_EVERY_S:
            self.flush()

    def flush(self):
        """Writes what has been added."""
        self._flushed_s = time.monotonic()
        rows, self._rows = self._rows, []
        if not rows or self._file is None:
            return
        try:
            os.write(self._file, ("\n".join(rows) + "\n").encode())
        except OSError as error:
            self.problem = f"power trace: {error}"
            self._close_file()

    def close(self):
        """Writes the rest and closes the file."""
        self.flush()
        self._close_file()

    def _close_file(self):
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


def trace_path(run_dir, host, first_host):
    """Returns the file that processes of `host` write: power.csv on the host of rank 0."""
    return Path(run_dir) / ("power.csv" if host == first_host else f"power.{host}.csv")


def join_traces(run_dir):
    """Brings the files of the other hosts into power.csv, by time, and removes them.

    For rank 0 after all processes have closed theirs, and for a run that goes on after a crash.
    """
    run_dir = Path(run_dir)
    others = sorted(run_dir.glob("power.*.csv"))
    if not others:
        return
    first = run_dir / "power.csv"
    rows = [row for path in (first, *others) if path.exists() for row in _rows(path)]
    rows.sort(key=lambda row: float(row["time_s"]))
    with written_whole(first) as beside, open(beside, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for path in others:
        path.unlink()


def _rows(path):
    with open(path, newline="") as file:
        # A crash may have cut the last row short.
        return [
            row
            for row in csv.DictReader(file)
            if None not in row and row["throttle_reasons"] is not None
        ]


def _last_byte(path):
    """Returns the last byte of a file that is not empty; the file may be days long."""
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)


def _create_with_header(path):
    """Creates the file with its header in one step, so that no other process sees it without."""
    if path.exists():
        return
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(",".join(COLUMNS) + "\n")
    try:
        os.link(beside, path)
    except FileExistsError:
        pass  # another process of this host was first
    except OSError:  # a file system without hard links
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _figure(value, digits):
    return "" if value is None else f"{value:.{digits}f}"
