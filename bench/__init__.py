"""Measurements, each a ratio against a baseline that was taken in the same run."""
