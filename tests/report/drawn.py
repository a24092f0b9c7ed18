"""What the tests of figures read from run folders and from drawn figures."""

import matplotlib.pyplot as plt

from keras_nowcast import records
from keras_nowcast.study import table


def read(folder):
    return table.read(records.read_runs([folder]))


def texts(figure):
    return [text.get_text() for text in figure.findobj(plt.Text) if text.get_text()]


def points(axes):
    return {
        point
        for bars in axes.containers
        for point in zip(bars.lines[0].get_xdata(), bars.lines[0].get_ydata(), strict=True)
    }
