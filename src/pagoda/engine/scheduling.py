"""A scheduling policy for a model: what ``pagoda calibrate`` taught it is read from beside the weights."""

from __future__ import annotations

from pathlib import Path

from ..core.errors import ConfigError, ModelError
from ..schedule.policies import POLICIES, parse_scheduling
from ..schedule.policies.base import SchedulingPolicy
from ..schedule.prediction.trained import read_trained


def policy_for(scheduling: str, model_folder: Path) -> SchedulingPolicy:
    """Raises ConfigError for a policy that cannot do without training and has none, ModelError for a damaged file."""
    policy = parse_scheduling(scheduling)
    (name,) = (name for name in POLICIES.names() if POLICIES.get(name) is type(policy))
    trained = read_trained(model_folder, name)
    if trained is None:
        if policy.needs_training:
            raise ConfigError(
                f"scheduling={name!r} was not trained for this model; run: pagoda calibrate {name} {model_folder} "
                "--prompts FILE"
            )
        return policy
    try:
        policy.load(trained)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{model_folder} holds a predictor for {name} that is damaged ({error}); run pagoda calibrate again"
        ) from error
    return policy
