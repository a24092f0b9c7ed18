"""Training: several processes, the fit, checkpoints, the record."""
