"""Sensors that lack something: files that are spoiled, drivers that lack a function."""

import re

from stub_nvml import SOURCE, Simulation

from keras_nowcast.energy import choose_source
from keras_nowcast.energy.reading import Reading

SYMBOLS = re.findall(r"^(?:int|const char \*) ?(nvml\w+)\(", SOURCE.read_text(), re.MULTILINE)


def spoil(path, how):
    """Replaces a file by a folder or by other bytes, or removes it."""
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how != "absent":
        path.write_bytes(how)


def measured_or_reason(stub, start_s=3.0, seconds=10.0):
    """Returns (joules of a stretch, None), or (None, why there are none)."""
    stub.set_time(0.0)
    source = choose_source("auto", tensorflow_uses_gpu=True, environ={}, rapl_root="nowhere")
    if source.kind != "nvml":
        return None, source.reason
    (meter,) = source.meters
    assert isinstance(meter.read_state(meter.read_state()), Reading)
    simulation = Simulation(stub, [meter])
    parts = simulation.measure(meter, start_s, seconds, after_s=1.5)
    for part in (parts["counter"], parts["power"]):
        if part is not None and part["seconds"] > 0:
            return part["joules"] * seconds / part["seconds"], None
    return None, "; ".join(simulation.sampler.tracks[meter.key].problems)
