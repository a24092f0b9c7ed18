"""The network: its layers, loss, precision and counted cost."""
