"""Surgeons that work layer by layer, from the inputs that calibration data give each layer."""
