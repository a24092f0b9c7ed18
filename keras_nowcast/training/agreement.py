"""The ranks of a job agree on what they train, before they train it.

Each rank describes its configuration, data and software as text. The ranks exchange a digest of it;
only if the digests differ, they exchange the descriptions, and all are refused with one line that
names the rank and the difference. Paths, how a run is watched, and the times of files may differ.
"""

import hashlib
import json
import platform
import socket
from collections import Counter
from pathlib import Path

import keras_nowcast
from keras_nowcast.config import ALIKE, names_on_ranks
from keras_nowcast.data import sevir
from keras_nowcast.errors import InputError
from keras_nowcast.training import distributed, user_settings

SAMPLED_EVENTS = 8  # whose pixels are compared, from the first to the last by time
_MOST_GROUPS = 3  # of ranks that are named, with at most as many differences each
_REMEDIES = {  # windows follow from flags or data
    "flags": "give every rank the same flags",
    "data": "give every rank the same copy of the data",
    "code": "install the same version of keras_nowcast on every host",
    "software": "install the same versions on every host",
    "variables": "set the same environment variables on every rank",
}


def check(world, config, split):
    """Checks that all ranks of a job train the same; all ranks call it together.

    Args:
      world: the World.
      config: the RunConfig of this rank, with every value that depends on the data filled in.
      split: its Split of the events.

    Raises:
      InputError: they do not; every rank raises it.
    """
    require(world, lambda: describe(config, split))


def require(world, description):
    """Checks that all ranks of a job have the same description; all ranks call it together.

    Args:
      world: the World.
      description: function that returns it as `describe` does; not called on a single rank.

    Raises:
      InputError: they do not; every rank raises it.
    """
    if world.size == 1:
        return
    mine = description()
    text = json.dumps(mine, sort_keys=True)
    if len(set(world.gather(hashlib.sha256(text.encode()).hexdigest()))) > 1:
        raise InputError(difference(world.gather(mine), world.gather(socket.gethostname())))


def describe(config, split):
    """Returns what must be the same on all ranks, as {part: {name: value}} of texts and numbers."""
    windows = {
        f"{name} windows": sevir.count_windows(
            getattr(split, name), config.window_stride, config.max_windows
        )
        for name in ("train", "validation")
    }
    events = {"train": split.train, "validation": split.validation}
    return {
        "flags": flags({name: getattr(config, name) for name in names_on_ranks(ALIKE)}),
        "windows": windows,
        "data": describe_data(config.data, events),
        **describe_software(),
    }


def flags(values):
    """Returns {name: value} with each name as its flag, `--run-dir` for `run_dir`."""
    return {f"--{name.replace('_', '-')}": value for name, value in values.items()}


def describe_software():
    """Returns the parts of a description that are the same for every job of this process."""
    return {
        "code": {"the source of keras_nowcast": source_digest()},
        "software": _versions(),
        "variables": user_settings.of_numbers(),
    }


def difference(descriptions, hosts):
    """Returns one line that names the ranks that differ from most others, and in what.

    Args:
      descriptions: what `describe` returned on each rank, in order of rank; not all equal.
      hosts: the name of the host of each rank.
    """
    flat = [_flattened(each) for each in descriptions]
    texts = [json.dumps(each, sort_keys=True) for each in descriptions]
    usual = Counter(texts).most_common(1)[0][0]  # of equally many, that of the lowest rank
    theirs = flat[texts.index(usual)]
    groups = {}  # of the ranks with the same differences
    for rank, mine in enumerate(flat):
        names = [name for name in {**theirs, **mine} if mine.get(name) != theirs.get(name)]
        if names:
            values = tuple((n, mine.get(n, "absent"), theirs.get(n, "absent")) for n in names)
            groups.setdefault(values, []).append(rank)
    said = [
        f"{_ranks_text(ranks, hosts)} {'have' if len(ranks) > 1 else 'has'} {_values_text(values)}"
        for values, ranks in groups.items()
    ]
    parts = {part for values in groups for (part, _), _, _ in values}
    remedies = [remedy for part, remedy in _REMEDIES.items() if part in parts]
    return (
        "all ranks must have the same configuration, data and software. Received: "
        f"{_shortened(said, '; ')}; {', '.join(remedies)}."
    )


def source_digest():
    """Returns a digest of the Python source of this package."""
    root = Path(keras_nowcast.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root)} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


def describe_data(root, sets):
    """Returns what sets of events hold: the events, their files' sizes and the pixels of a few.

    Args:
      root: the root folder of the data set.
      sets: {name: Events}.
    """
    found = {}
    for name, events in sets.items():
        found[f"{name} events"] = len(events)
        found[f"the list of {name} events"] = _digest(
            "\n".join(f"{e.name} {e.index} {e.frames} {e.size}" for e in events).encode()
        )
    events = [event for each in sets.values() for event in each]
    folder = Path(root).absolute() / "data"
    for file in sorted({event.file for event in events}):
        found[f"the bytes of {file.relative_to(folder)}"] = _size(file)
    last, parts = len(events) - 1, SAMPLED_EVENTS - 1
    for place in sorted({round(last * part / parts) for part in range(parts + 1)}) * bool(events):
        found[f"the pixels of event {events[place].name}"] = _pixels_digest(events[place])
    return found


def _versions():
    import h5py
    import keras
    import numpy
    import tensorflow

    return {
        "Python": platform.python_version(),
        "TensorFlow": tensorflow.__version__,
        "Keras": keras.__version__,
        "Horovod": distributed.horovod_version(),
        "NumPy": numpy.__version__,
        "h5py": h5py.__version__,
    }


def _size(file):
    try:
        return file.stat().st_size
    except OSError as error:
        return error.strerror


def _pixels_digest(event):
    try:
        return _digest(sevir.read_event(event))
    except InputError:  # which event, and why, is reported when it is read in training
        return "unreadable"


def _digest(content):
    return hashlib.sha256(content).hexdigest()[:12]


def _flattened(description):
    return {
        (part, name): value for part, each in description.items() for name, value in each.items()
    }


def _ranks_text(ranks, hosts):
    names = ", ".join(dict.fromkeys(hosts[rank] for rank in ranks))
    if len(ranks) == 1:
        return f"rank {ranks[0]} on {names}"
    return f"ranks {_shortened(list(map(str, ranks)), ', ')} on {names}"


def _values_text(values):
    return _shortened(
        [f"{name} {mine} instead of {theirs}" for (_, name), mine, theirs in values], ", "
    )


def _shortened(texts, separator):
    left_out = len(texts) - _MOST_GROUPS
    more = f"{separator}and {left_out} more" if left_out > 0 else ""
    return separator.join(texts[:_MOST_GROUPS]) + more
