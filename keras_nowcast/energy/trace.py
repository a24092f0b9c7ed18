"""power.csv: the power of every device, one row per reading, written during the run."""

import csv
import math
import os
import time
from pathlib import Path

from keras_nowcast import columns, schema
from keras_nowcast.files import written_whole

COLUMNS = schema.names(columns.POWER)
_FLUSH_EVERY_S = 0.5


class PowerTrace:
    """Appends rows to a trace that other processes of this host may append to as well.

    Complete rows are written at least once per second, in one call, to a file opened for appending.
    Processes of one host therefore do not interleave their rows, and a crash loses only the last
    second. Processes of another host need a separate file (`trace_path`), since appending over a
    network file system is not safe between hosts.

    Attributes:
      problem: why writing stopped (a full disk), or None. It never raises.
    """

    def __init__(self, path, zero_unix_s):
        """Opens the trace; `zero_unix_s` is the unix time that is time 0 of `time_s`."""
        self.problem = None
        # One clock for all rows, unaffected by adjustments of the system time.
        self._offset_s = time.time() - time.monotonic() - zero_unix_s
        self._rows = []
        self._flushed_s = time.monotonic()
        self._file = None
        try:
            _create_with_header(Path(path))
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
            if _last_byte(path) != b"\n":  # a crash or a full disk truncated the last row
                os.write(self._file, b"\n")
        except OSError as error:
            self.problem = f"power trace: {error}"

    def time_s(self, monotonic_s):
        """Converts a time of the monotonic clock to the time of the trace."""
        return monotonic_s + self._offset_s

    def add(self, monotonic_s, host, device, watts, state):
        """Adds the row of one device; `watts` and the fields of `state` may be None."""
        fields = (
            f"{self.time_s(monotonic_s):.3f}",
            host,
            device,
            _formatted(watts, 3),
            _formatted(state.utilization_percent, 0),
            _formatted(state.memory_mib, 1),
            _formatted(state.sm_mhz, 0),
            _formatted(state.temperature_c, 0),
            state.throttle_reasons or "",
        )
        self._rows.append(",".join(fields))
        if time.monotonic() - self._flushed_s >= _FLUSH_EVERY_S:
            self.flush()

    def flush(self):
        """Writes the rows that were added."""
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
        """Writes the remaining rows and closes the file."""
        self.flush()
        self._close_file()

    def _close_file(self):
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


def trace_path(run_dir, host, first_host):
    """Returns the file that processes of `host` write, power.csv on the host of rank 0."""
    return Path(run_dir) / ("power.csv" if host == first_host else f"power.{host}.csv")


def join_traces(run_dir):
    """Merges the files of the other hosts into power.csv, by time, and removes them.

    Rank 0 calls it after all processes have closed their files, and when it resumes a run after a
    crash.
    """
    run_dir = Path(run_dir)
    others = sorted(run_dir.glob("power.*.csv"))
    if not others:
        return
    first = run_dir / "power.csv"
    files = [path for path in (first, *others) if path.exists()]
    if not all(map(_is_trace, files)):
        return  # what someone else wrote stays as it is
    rows = [row for path in files for row in _rows(path)]
    rows.sort(key=lambda row: float(row["time_s"]))
    with written_whole(first) as beside, open(beside, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for path in others:
        path.unlink()


def _rows(path):
    with open(path, newline="", errors="replace") as file:
        # A crash may have truncated the last row.
        return [
            row
            for row in csv.DictReader(file)
            if None not in row and row["throttle_reasons"] is not None and _is_time(row["time_s"])
        ]


def _is_trace(path):
    with open(path, errors="replace") as file:
        return file.readline().rstrip("\r\n").split(",") == list(COLUMNS)


def _is_time(text):
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _last_byte(path):
    """Returns the last byte of a nonempty file, which may hold days of readings."""
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)


def _create_with_header(path):
    """Creates the file with its header atomically, so that no process sees it without one."""
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


def _formatted(value, digits):
    return "" if value is None else f"{value:.{digits}f}"
