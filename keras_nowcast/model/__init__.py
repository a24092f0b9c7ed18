"""The UNet: its layers, loss, precision and counted cost."""
