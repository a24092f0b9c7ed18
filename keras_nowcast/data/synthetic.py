"""A synthetic SEVIR: storms that move, grow, decay and merge at several scales.

It has the layout of the real SEVIR, so that every reader of SEVIR reads it. Its weather is
realistic enough that a forecast can be better than persistence: a smooth wind moves structures, and
larger ones live longer, as with rain.

Choice: everything here. The ideas are common in stochastic rain models. Noise fields have the
spectrum of rain, with a separate lifetime for each scale, in a frame of reference that moves with
the wind. Convective cells with a life cycle are added.
"""

import csv
import datetime
import os
import shutil
from pathlib import Path

import numpy as np

from keras_nowcast.data import catalog
from keras_nowcast.errors import InputError
from keras_nowcast.files import new_hdf5
from keras_nowcast.vil import FRAME_MINUTES, MISSING

DEFAULT_ROOT = Path("data/synthetic")

_COARSE_KM = 4  # grid length of the field of scales above _SPLIT_KM
_SPLIT_KM = 32
_DOMAIN = 192  # points along a side of the coarse periodic domain, 768 km
_FINE_DOMAIN = 256  # of the fine one, 256 km; a structure does not live long enough to return
_LIFETIME_MIN_PER_KM = 2.5  # a structure of 40 km lives 100 minutes
_MISSING_EVERY = 8  # one event in 8 has gaps
_EVENT_TYPES = ("Hail", "Thunderstorm Wind", "Tornado", "Heavy Rain", "Flash Flood", "")
_PROJECTION = "+proj=laea +lat_0=38 +lon_0=-98 +units=m +a=6370997.0 +ellps=sphere "
_EARTH_RADIUS_M = 6370997.0
# Of five events, one is in the validation set (2019, up to June) and one in the test set (later).
_FILES = (
    ("vil/2018/SEVIR_VIL_SYNTHETIC_2018_0101_1231.h5", datetime.datetime(2018, 4, 1), 240),
    ("vil/2019/SEVIR_VIL_SYNTHETIC_2019_0101_0531.h5", datetime.datetime(2019, 1, 15), 130),
    ("vil/2019/SEVIR_VIL_SYNTHETIC_2019_0602_1231.h5", datetime.datetime(2019, 6, 2), 180),
)
_FILE_OF_EVENT = (0, 1, 0, 0, 2)  # repeated


def write_synthetic(root, events=24, size=384, frames=49, seed=0, contiguous=False, progress=True):
    """Writes a synthetic SEVIR; it appears at `root` complete or not at all.

    Args:
      root: folder to create; it must not exist, or be empty.
      events: number of events; of five, three are of 2018, one of early 2019, and one is later than
        2019-06-01: the training, validation and test sets.
      size: pixels along a side, 1 km each.
      frames: frames of an event, 5 minutes apart.
      seed: seed of everything; event k depends only on the seed and k.
      contiguous: whether to store `vil` contiguously instead of as one compressed chunk per event.
      progress: show a progress bar.

    Returns:
      The root as a Path.

    Raises:
      InputError: root is not empty or cannot be written, or a number is out of range.
    """
    root = Path(root)
    for name, value, least in (
        ("events", events, 1),
        ("size", size, 16),
        ("frames", frames, 1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise InputError(f"`--{name}` must be at least {least}. Received: {value}.")
    beside = root.with_name(f".{root.name}.{os.getpid()}")
    try:
        if root.is_file() or (root.is_dir() and any(root.iterdir())):
            raise InputError(
                f"`--root` must be a new or an empty folder. Received: {root}, which is not empty; "
                "give another folder."
            )
        beside.mkdir(parents=True)
    except OSError as error:
        raise InputError(
            f"`--root` must be a folder that can be created. Received: {root} ({error.strerror})."
        ) from None
    try:
        rows = _write_files(beside, events, size, frames, seed, contiguous, progress)
        _write_catalog(beside, rows)
        os.replace(beside, root)
    except OSError as error:
        raise InputError(
            f"`--root` must be on a disk with space for the data. Received: {root} "
            f"({error.strerror or error}), of which nothing is left; make space, or give another "
            "folder."
        ) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return root


def default_root(say=print):
    """Returns the root of the default data set, after writing it if it is absent.

    If several processes find it absent at once, all use that of the first to finish.
    """
    there = DEFAULT_ROOT / "CATALOG.csv"
    if not there.exists():
        say(f"no --data given: writing a small synthetic SEVIR to {DEFAULT_ROOT}")
        try:
            write_synthetic(DEFAULT_ROOT)
        except (OSError, InputError):
            if not there.exists():
                raise
    return DEFAULT_ROOT


def _write_files(root, events, size, frames, seed, contiguous, progress):
    from tqdm import tqdm

    rows = []
    hidden = None if progress else True  # None: shown on a terminal only
    bar = tqdm(total=events, desc="synthetic SEVIR", unit="event", disable=hidden)
    for number, (name, _, _) in enumerate(_FILES):
        members = [k for k in range(events) if _FILE_OF_EVENT[k % len(_FILE_OF_EVENT)] == number]
        if not members:
            continue
        path = root / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (size, size, frames)
        storage = {} if contiguous else {"chunks": (1, *shape), "compression": "gzip"}
        with new_hdf5(path) as (file, check):
            ids = file.create_dataset("id", (len(members),), "S10")
            vil = file.create_dataset("vil", (len(members), *shape), np.uint8, **storage)
            for index, k in enumerate(members):
                codes = event_codes(seed, k, size, frames)
                ids[index], vil[index] = _event_id(k).encode(), codes
                check()
                rows.append(_row(seed, k, name, index, codes))
                bar.update()
    bar.close()
    return rows


def _event_id(k):
    return f"S{k:06d}"


def _row(seed, k, name, index, codes):
    """Returns the catalog row of event k, in the order of the columns."""
    rng = np.random.default_rng([seed, k, 1])
    size, _, frames = codes.shape
    _, first_day, days = _FILES[_FILE_OF_EVENT[k % len(_FILE_OF_EVENT)]]
    time = first_day + datetime.timedelta(minutes=5 * int(rng.integers(days * 288)))
    event_type = str(rng.choice(_EVENT_TYPES))
    west, south = rng.uniform(-1.2e6, 1.2e6), rng.uniform(-8e5, 8e5)
    valid = codes[codes != MISSING]
    offsets = (FRAME_MINUTES * (frame - frames // 2) for frame in range(frames))
    row = {
        "id": _event_id(k),
        "file_name": name,
        "file_index": index,
        "img_type": "vil",
        "time_utc": time.isoformat(sep=" "),
        "minute_offsets": ":".join(map(str, offsets)),
        "episode_id": f"{100000 + k}.0" if event_type else "",
        "event_id": f"{k}.0" if event_type else "",
        "event_type": event_type,
        "proj": _PROJECTION,
        "size_x": size,
        "size_y": size,
        "height_m": size * 1000.0,
        "width_m": size * 1000.0,
        "data_min": float(valid.min(initial=MISSING)),
        "data_max": float(valid.max(initial=0)),
        "pct_missing": f"{1 - valid.size / codes.size:.6f}",
    }
    row["llcrnrlat"], row["llcrnrlon"] = latitude_longitude(west, south)
    row["urcrnrlat"], row["urcrnrlon"] = latitude_longitude(west + size * 1e3, south + size * 1e3)
    return [row[column] for column in catalog.CATALOG_COLUMNS]


def latitude_longitude(x_m, y_m, latitude_0=38.0, longitude_0=-98.0):
    """Returns the degrees of a point of SEVIR's projection, Lambert azimuthal equal-area."""
    distance = np.hypot(x_m, y_m)
    angle = 2 * np.arcsin(distance / (2 * _EARTH_RADIUS_M))
    sin_0, cos_0 = np.sin(np.radians(latitude_0)), np.cos(np.radians(latitude_0))
    latitude = np.arcsin(np.cos(angle) * sin_0 + y_m * np.sin(angle) * cos_0 / distance)
    longitude = np.arctan2(
        x_m * np.sin(angle), distance * cos_0 * np.cos(angle) - y_m * sin_0 * np.sin(angle)
    )
    return round(float(np.degrees(latitude)), 6), round(longitude_0 + np.degrees(longitude), 6)


def _write_catalog(root, rows):
    with open(root / "CATALOG.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(catalog.CATALOG_COLUMNS)
        writer.writerows(rows)


# ---- one event --------------------------------------------------------------------------------


def event_codes(seed, k, size, frames):
    """Makes event k.

    Returns:
      (size, size, frames) uint8 VIL codes. One event in eight has missing pixels, 255.
    """
    rng = np.random.default_rng([seed, k])
    wind = _Wind(rng, size, frames)
    coarse = _Noise(rng, _DOMAIN, _COARSE_KM, longest_km=400, shortest_km=_SPLIT_KM)
    fine = _Noise(rng, _FINE_DOMAIN, 1, longest_km=_SPLIT_KM, shortest_km=3)
    storm = _Storm(rng, size)
    cells = _Cells(rng, size, frames)
    wetness = rng.uniform(-1.3, 0.1)
    codes = np.empty((frames, size, size), np.uint8)
    for frame in range(frames):
        y, x = wind.origins(frame)  # where the air of each pixel is at the middle frame, km
        coarse.step()
        fine.step()
        rain = wetness + 1.1 * _sampled(coarse.field(), y / _COARSE_KM, x / _COARSE_KM)
        rain += storm.envelope(y, x)
        code = 50 * np.maximum(rain, 0)
        cells.add_to(code, frame, wind)
        # Heavy rain varies more than light rain.
        code += np.where(code > 0, 8 + 0.22 * code, 0) * _sampled(fine.field(), y, x)
        codes[frame] = np.clip(code, 0, 254)
    codes = np.ascontiguousarray(np.moveaxis(codes, 0, -1))
    if k % _MISSING_EVERY == _MISSING_EVERY - 1:
        codes[_gap(rng, size)] = MISSING
    return codes


class _Wind:
    """A steady wind, mostly from the west, with some rotation and stretching."""

    def __init__(self, rng, size, frames):
        speed, direction = rng.uniform(1.5, 6.0), np.radians(rng.normal(25, 35))  # km a frame
        self.velocity = np.array([speed * np.sin(direction), speed * np.cos(direction)])  # y, x
        self.gradient = rng.normal(0, 0.002, (2, 2))  # a frame
        self.middle = frames // 2
        axis = np.arange(size, dtype=np.float32) - size / 2
        self.y, self.x = axis[:, None], axis[None, :]

    def at(self, y, x):
        """Returns the velocity (y, x), km per frame, at points relative to the center."""
        by, bx = self.velocity, self.gradient
        return by[0] + bx[0, 0] * y + bx[0, 1] * x, by[1] + bx[1, 0] * y + bx[1, 1] * x

    def origins(self, frame):
        """Returns the place of each pixel's air at the middle frame, two (size, size) arrays."""
        velocity_y, velocity_x = self.at(self.y, self.x)
        elapsed = np.float32(frame - self.middle)
        return (
            (self.y - elapsed * velocity_y).astype(np.float32),
            (self.x - elapsed * velocity_x).astype(np.float32),
        )


class _Noise:
    """A periodic Gaussian field with the spectrum of rain and a lifetime for each scale."""

    def __init__(self, rng, points, km, longest_km, shortest_km):
        self.rng, self.points = rng, points
        y = np.fft.fftfreq(points, km)[:, None]
        x = np.fft.rfftfreq(points, km)[None, :]
        wavenumber = np.hypot(y, x)
        wavenumber[0, 0] = 1e-9
        length_km = 1 / wavenumber
        inside = (length_km <= longest_km) & (length_km > shortest_km)
        amplitude = np.where(inside, length_km**1.4, 0)
        variance = np.sum(amplitude**2 * np.where(x == 0, 1, 2))
        self.amplitude = (amplitude * points**2 / np.sqrt(2 * variance)).astype(np.float32)
        memory = np.exp(-FRAME_MINUTES / (_LIFETIME_MIN_PER_KM * length_km))
        self.memory = memory.astype(np.float32)
        self.renewal = np.sqrt(1 - memory**2).astype(np.float32)
        self.spectrum = self._draw()

    def _draw(self):
        parts = self.rng.standard_normal((*self.amplitude.shape, 2), np.float32)
        return self.amplitude * parts.view(np.complex64)[..., 0]

    def step(self):
        self.spectrum = self.memory * self.spectrum + self.renewal * self._draw()

    def field(self):
        """Returns the current field, (points, points) float32, mean 0 and variance about 1."""
        return np.fft.irfft2(self.spectrum, s=(self.points, self.points))


class _Storm:
    """The main storm of the event: an elongated region in which rain is likely and heavy."""

    def __init__(self, rng, size):
        self.middle = rng.normal(0, 0.12 * size, 2)
        self.angle = rng.uniform(0, np.pi)
        length = rng.uniform(0.2, 0.6) * size
        self.scale = length, length * rng.uniform(0.25, 0.8)
        self.height = rng.uniform(0.8, 2.2)

    def envelope(self, y, x):
        y, x = y - np.float32(self.middle[0]), x - np.float32(self.middle[1])
        cos, sin = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        along, across = cos * x + sin * y, cos * y - sin * x
        squared = (along / np.float32(self.scale[0])) ** 2
        squared += (across / np.float32(self.scale[1])) ** 2
        return np.float32(self.height) * np.exp(-squared)


class _Cells:
    """Convective cells: they form near each other, grow, drift from the wind, merge and decay."""

    def __init__(self, rng, size, frames):
        count = rng.poisson(70 * size**2 / 384**2)
        clusters = rng.normal(0, 0.25 * size, (max(1, rng.poisson(4)), 2))
        self.place = clusters[rng.integers(len(clusters), size=count)]
        self.place = self.place + rng.normal(0, 25, (count, 2))  # at its birth, km
        self.birth = rng.uniform(-15, frames, count)  # frame
        self.lifetime = rng.gamma(4, 3.5, count)  # frames; 70 minutes on average
        self.radius = rng.gamma(6, 0.7, count)  # km
        self.stretch = rng.uniform(1.0, 1.5, count)
        self.angle = rng.uniform(0, np.pi, count)
        self.drift = rng.normal(0.4, 0.6, (count, 2)) * (-1, 1)  # km a frame; to the right of east
        self.peak = rng.uniform(60, 200, count)

    def add_to(self, code, frame, wind):
        """Adds the cells that exist in a frame to the codes, in place."""
        size = len(code)
        age = (frame - self.birth) / self.lifetime
        for i in np.flatnonzero((age > 0) & (age < 1)):
            velocity = np.add(wind.at(*self.place[i]), self.drift[i])
            y, x = self.place[i] + velocity * (frame - self.birth[i]) + size / 2
            strength = np.sin(np.pi * age[i] ** 0.7)  # grows faster than it decays
            radius = self.radius[i] * (0.5 + strength)
            reach = int(4 * radius) + 1
            top, left = max(0, int(y) - reach), max(0, int(x) - reach)
            patch = code[top : max(0, int(y) + reach), left : max(0, int(x) + reach)]
            if patch.size == 0:
                continue
            dy = np.arange(patch.shape[0])[:, None] + top - y
            dx = np.arange(patch.shape[1])[None, :] + left - x
            cos, sin = np.cos(self.angle[i]), np.sin(self.angle[i])
            along, across = cos * dx + sin * dy, cos * dy - sin * dx
            squared = (along / self.stretch[i]) ** 2 + (across * self.stretch[i]) ** 2
            # A flat core with wide skirts looks more like a cell than a Gaussian does.
            cell = strength * self.peak[i] / (1 + (squared / radius**2) ** 1.5)
            cell -= strength * self.peak[i] / 65  # nothing at 4 radii
            np.maximum(cell, 0, out=cell)
            # Where a cell meets rain, the heavier one shows, and a part of the other.
            patch[...] = np.maximum(patch, cell) + 0.35 * np.minimum(patch, cell)


def _sampled(field, y, x):
    """Interpolates a periodic field bilinearly at points in units of its grid."""
    points = len(field)
    top, left = np.floor(y), np.floor(x)
    dy, dx = y - top, x - left
    top, left = top.astype(np.int32) % points, left.astype(np.int32) % points
    below, right = (top + 1) % points, (left + 1) % points
    flat = field.ravel()
    upper = flat[top * points + left] * (1 - dx) + flat[top * points + right] * dx
    lower = flat[below * points + left] * (1 - dx) + flat[below * points + right] * dx
    return upper * (1 - dy) + lower * dy


def _gap(rng, size):
    """Returns the mask (size, size) of pixels outside the range of a radar."""
    axis = np.arange(size)
    y, x = rng.uniform(0.2, 0.8, 2) * size
    reach = rng.uniform(0.5, 0.8) * size
    return np.hypot(axis[:, None] - y, axis[None, :] - x) > reach
