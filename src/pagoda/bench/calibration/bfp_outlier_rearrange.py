"""Channels of every head by their mean size (block floating point with outliers, arXiv:2403.20137)."""

from ._codecs import calibrator

CALIBRATE = calibrator("bfp_outlier_rearrange")
