"""SEVIR: its format, a synthetic stand-in, and the pipeline that feeds training."""
