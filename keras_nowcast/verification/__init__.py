"""Forecast verification: additive statistics, the scores made from them, and the baselines."""
