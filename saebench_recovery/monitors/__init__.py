"""Detectors that sit on a defense: one file each, calibrated alike in `calibration`."""
