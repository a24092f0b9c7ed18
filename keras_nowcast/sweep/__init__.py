"""Sweeps: runs many cells, on this machine or as Slurm job arrays."""
