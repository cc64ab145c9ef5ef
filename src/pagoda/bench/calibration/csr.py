"""Dictionaries of keys and values for every head (CSR, arXiv:2412.11741)."""

from ._codecs import calibrator

CALIBRATE = calibrator("csr")
