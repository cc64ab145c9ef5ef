"""One file per method that must look at a model before it can serve it; ``pagoda calibrate`` runs them."""

from ...core.registry import Registry

CALIBRATORS = Registry("pagoda.bench.calibration", "method to calibrate", "CALIBRATE")
