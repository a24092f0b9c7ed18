"""Figures and tables from run folders alone; TensorFlow is never imported here."""
