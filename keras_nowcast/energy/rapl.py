"""The energy counters of CPU packages and their memory, from the powercap tree of Linux.

Source: the powercap documentation of the kernel. `energy_uj` counts microjoules and restarts from 0
after `max_energy_range_uj`. Since Linux 5.10 only root can read it (CVE-2020-8694). Containers and
simulators show trees with parts missing; a part that is not needed may be anything.
"""

from pathlib import Path

from keras_nowcast.energy.reading import MeterError, Reading

ROOT = Path("/sys/class/powercap")
SOURCE = "rapl"


class RaplUnavailable(Exception):
    """RAPL cannot be used; the message is the reason."""


def list_zones(root=ROOT):
    """Returns {name: folder} of the zones to add up: each package, and its DRAM if it has any.

    Zones inside a package (core, uncore) are parts of it and are left out. A package that two
    drivers show (intel-rapl and intel-rapl-mmio) is counted once.

    Raises:
      RaplUnavailable: there is no zone, or one is not readable. The sum of the others would lack a
        package without showing it.
    """
    zones = {}
    for folder in sorted(Path(root).glob("intel-rapl*:*")):
        name = _zone_name(folder)
        if name is not None and name not in zones:
            zones[name] = folder
    if not zones:
        raise RaplUnavailable(f"no RAPL zones under {root} (a virtual machine, or another CPU)")
    for folder in zones.values():
        try:
            _read_number(folder / "energy_uj")
        except PermissionError:
            raise RaplUnavailable(
                f"only root can read {folder / 'energy_uj'}; give this user the right (chmod a+r)"
            ) from None
        except (OSError, ValueError) as error:
            raise RaplUnavailable(f"{folder / 'energy_uj'} cannot be read ({error})") from None
    return zones


class RaplMeter:
    """Reads one zone: the energy of a CPU package or of its memory, for all processes on it.

    The counter updates about every millisecond. Two readings must be less than one wrap-around
    apart, which takes minutes even at the highest power. If the range of the counter is unknown,
    the energy at a wrap-around is unknown too: the counter then decreases, as at a reset.

    Attributes:
      note: why the range is unknown, or None.
    """

    kind = "rapl"
    counter_source, power_source = SOURCE, None
    calibration_percent = 5.0  # as for NVML: no external meter here
    power_window_s, counter_step_s = None, 0.001
    scope = None

    def __init__(self, name, folder):
        self.key, self.name = name, name
        self._file = Path(folder) / "energy_uj"
        self._range_uj, self.note = _range_of(Path(folder) / "max_energy_range_uj")
        self._last_uj = None
        self._wrapped_uj = 0

    def read_counter(self):
        """Returns joules since some time in the past, corrected for wrap-arounds.

        Raises:
          MeterError: there is no valid reading this time.
        """
        try:
            now_uj = _read_number(self._file)
        except (OSError, ValueError) as error:
            raise MeterError(f"{self.name}: {error}") from None
        if self._last_uj is not None and now_uj < self._last_uj:
            self._wrapped_uj += self._range_uj or 0
        self._last_uj = now_uj
        return (self._wrapped_uj + now_uj) / 1e6

    def read_state(self, slow=None):
        """Returns an empty Reading, since RAPL measures only energy."""
        return Reading()


def _zone_name(folder):
    """Returns "package-0", or "package-0 dram" for its memory; None for a part of a package.

    Raises:
      RaplUnavailable: it has no name, so that it may be a package.
    """
    name = _read_name(folder)
    if name.startswith("package"):
        return name
    if name == "dram":
        # `:0:1` is a child of `:0`; in sysfs both are links in one folder.
        return f"{_read_name(folder.parent / folder.name.rsplit(':', 1)[0])} {name}"
    return None


def _read_name(folder):
    try:
        name = (folder / "name").read_text(errors="backslashreplace").strip()
    except OSError as error:
        raise RaplUnavailable(f"{folder / 'name'} cannot be read ({error})") from None
    if not name:
        raise RaplUnavailable(f"{folder / 'name'} is empty")
    return name


def _range_of(path):
    """Returns (microjoules at which a counter restarts, None), or (None, why it is unknown)."""
    try:
        number = _read_number(path)
        if number > 0:
            return number, None
        reason = f"it is {number}"
    except (OSError, ValueError) as error:
        reason = str(error)
    return None, (
        f"the range of its counter is unknown ({path.name}: {reason}): the energy around a restart "
        "of the counter is not measured"
    )


def _read_number(path):
    number = int(path.read_text())
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number
