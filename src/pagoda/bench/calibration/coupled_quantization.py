"""Centres of four channels together for every head (coupled quantization, arXiv:2405.03917)."""

from ._codecs import calibrator

CALIBRATE = calibrator("coupled_quantization")
