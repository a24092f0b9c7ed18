"""What is measured under a stub driver that lacks some of its functions."""

import re

from stub_nvml import SOURCE, Simulation

from keras_nowcast.energy import choose_source
from keras_nowcast.energy.reading import Reading

SYMBOLS = re.findall(r"^(?:int|const char \*) ?(nvml\w+)\(", SOURCE.read_text(), re.MULTILINE)


def measured_or_reason(stub, start_s=3.0, seconds=10.0):
    """Returns (joules of a stretch, None), or (None, why there are none)."""
    stub.set_time(0.0)
    source = choose_source("auto", tensorflow_uses_gpu=True, environ={}, rapl_root="nowhere")
    if source.kind != "nvml":
        return None, source.reason
    (meter,) = source.meters
    assert isinstance(meter.read_state(meter.read_state()), Reading)
    simulation = Simulation(stub, [meter])
    simulation.run_until(start_s)
    window = simulation.boundary(lambda: simulation.sampler.open_window("epoch", 0))
    simulation.run_until(start_s + seconds)
    simulation.boundary(lambda: simulation.sampler.close_window(window))
    simulation.run_until(start_s + seconds + 1.5)
    simulation.close()
    parts = simulation.sampler.measure(meter.key, window)
    for part in (parts["counter"], parts["power"]):
        if part is not None and part["seconds"] > 0:
            return part["joules"] * seconds / part["seconds"], None
    return None, "; ".join(simulation.sampler.tracks[meter.key].problems)
