"""Figures and tables from run folders alone; TensorFlow is never imported here."""

import os

# matplotlib does not load if this names a backend that is not installed, as a notebook's terminal
# may. It is set before any module of this room imports matplotlib.
os.environ["MPLBACKEND"] = "Agg"
