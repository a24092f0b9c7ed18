"""The pictures of one window of an evaluation, with the MSE of each forecast."""

import numpy as np

from keras_nowcast.report import panels
from keras_nowcast.report.style import NotDrawn, write_figure
from keras_nowcast.verification import evaluate
from keras_nowcast.vil import FRAME_MINUTES, FRAMES_IN, FRAMES_OUT, MISSING

PANEL_MINUTES = (5, 15, 30, 45, 60)


def write_example(example, out, levels):
    """Draws the example window of an evaluation as a panel and as an animation.

    Args:
      example: (name of the event, (y, x, 13) input codes, (y, x, 12) observed codes, {method:
        (y, x, 12) forecast codes}), or None if no window has rain; that is printed.
      out: Path of the folder to write to.
      levels: VIL codes at the edges of the colors.
    """
    if example is None:
        print("no window has rain: no panel and no animation are written")
        return
    name, x, y, forecasts = example
    leads = [minutes // FRAME_MINUTES - 1 for minutes in PANEL_MINUTES]
    title = f"event {name} UTC"
    scores = {
        method: [f"MSE {_mse(field[..., lead], y[..., lead]):.0f}" for lead in leads]
        for method, field in forecasts.items()
    }
    chosen = {method: field[..., leads] for method, field in forecasts.items()}
    panel = panels.forecast_panel(
        x[..., -1], y[..., leads], chosen, PANEL_MINUTES, levels, title, scores
    )
    write_figure(panel, out, "panel")
    minutes = FRAME_MINUTES * np.arange(1 - FRAMES_IN, FRAMES_OUT + 1)
    together = {k: np.concatenate([x, field], axis=-1) for k, field in forecasts.items()}
    panels.write_animation(
        out / "animation.gif",
        np.concatenate([x, y], axis=-1),
        together,
        minutes,
        levels,
        title,
    )


def _mse(forecast, observed):
    valid = observed != MISSING
    error = np.nan_to_num(forecast)[valid] - observed[valid].astype(np.float32)
    return np.square(error).mean() if valid.any() else np.nan


def draw_power(evaluation, rows, out):
    """Draws the power of the forecasts at small scales, if the grid resolves it."""
    try:
        figure = panels.power_by_lead(rows, evaluate.relative_spectra(evaluation))
    except NotDrawn as reason:
        print(f"power_by_lead is not drawn: {reason}")
    else:
        write_figure(figure, out, "power_by_lead")
