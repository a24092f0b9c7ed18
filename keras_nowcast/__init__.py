"""What it costs to train encoder-decoder networks, and what forecast skill that cost buys."""

__version__ = "0.1.0"
