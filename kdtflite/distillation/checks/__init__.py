"""Checks before a training starts, calibration, and the errors of a training."""
