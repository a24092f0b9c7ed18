"""What it costs to train encoder-decoder networks, in compute, time and energy, and what it buys."""

__version__ = "0.1.0"
