"""What ``pagoda calibrate POLICY MODEL`` taught a predictor, kept beside the model as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.beside import beside
from ...core.errors import ModelError

FOLDER = "schedule-calibration"
TAUGHT = ("learning_to_rank", "trail")
"""Scheduling policies whose predictors are trained (`bench.lengths`)."""


def read_trained(model: Path, policy: str) -> dict[str, Any] | None:
    """The policy's predictor, None where it was never trained. Raises ModelError for a damaged file."""
    path = trained_path(model, policy)
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["policy"] != policy:
            raise ValueError(f"it is for {data['policy']}")
        return dict(data["predictor"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is not of pagoda calibrate {policy} ({error}); run it again") from error


def trained_path(model: Path, policy: str) -> Path:
    """Where a policy's file is, or would be."""
    return beside(Path(model), FOLDER) / f"{policy}.json"


def write_trained(model: Path, policy: str, predictor: Mapping[str, Any], notes: Mapping[str, object]) -> Path:
    """Writes the file that ``read_trained`` reads; returns its path."""
    path = trained_path(model, policy)
    path.parent.mkdir(exist_ok=True)
    data = {"policy": policy, "notes": dict(notes), "predictor": dict(predictor)}
    path.write_text(json.dumps(data) + "\n", encoding="utf-8")
    return path
