"""Names of the ways to choose codes (`methods`, `models.distill`, `models.mixed`, `models.expert_bits`), for who asks
before anything is loaded. No torch.
"""

from __future__ import annotations

CALIBRATED = ("gptq", "awq")
BY_TENSOR = ("rtn", "hqq")
"""Methods that look at one matrix at a time and at no text."""
BY_MATRIX = (*BY_TENSOR, *CALIBRATED)
"""Those of `methods.METHODS`."""
TRAINED = ("distill", "mixed+distill")
"""Methods that train codes and scales on the whole model (`models.distill`)."""
CHOOSING = ("mixed", "mixed+distill", "edgemoe")
"""Methods that choose formats under a budget (`models.mixed`, `models.expert_bits`)."""
READING = (*CALIBRATED, "distill", *CHOOSING)
"""Methods that read calibration text."""
