"""Sweeps: makes the runs of many cells, here or as Slurm arrays."""
