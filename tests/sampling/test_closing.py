"""A mark that must have come in time: forced once, wherever the output stands then."""

from __future__ import annotations

import random

import pytest
import torch

from pagoda.core.errors import ConfigError
from pagoda.sampling.closing import Closing, ClosingState
from pagoda.sampling.params import SamplingParams
from pagoda.sampling.sampler import Sampler
from pagoda.sampling.state import SampleState
from pagoda.sampling.steps.closing import closing

MARK = (7, 9, 7)


def written(after: int, chosen: list[int], begins: tuple[int, ...] = ()) -> list[int]:
    """The output of a model that chooses these tokens where it is free."""
    state, output, free = ClosingState(Closing(after, MARK, begins)), [], iter(chosen)
    while True:
        token = state.forced
        if token is None:
            token = next(free, None)
        if token is None:
            return output
        output.append(token)
        state.accept(token)


@pytest.mark.parametrize(
    ("after", "chosen", "begins", "output"),
    [
        (2, [1, 2, 3, 4], (), [1, 2, *MARK, 3, 4]),
        (3, [1, 7, 9, 3], (), [1, 7, 9, 7, 3]),  # it was being written: completed, not begun again
        (4, [7, 9, 7, 1, 2, 3], (), [7, 9, 7, 1, 2, 3]),  # it came in time
        (1, [7, 2], (), [7, 9, 7, 2]),
        (2, [1, 2, 3], (5,), [1, 2, 3]),  # no thoughts were begun
        (2, [5, 2, 3], (5,), [5, 2, *MARK, 3]),
    ],
)
def test_the_mark_comes_once_and_in_time(after: int, chosen: list[int], begins: tuple[int, ...], output) -> None:
    assert written(after, chosen, begins) == output


def test_the_state_is_its_plain_twin() -> None:
    rng = random.Random(3)
    for _ in range(300):
        wanted = Closing(rng.randrange(1, 6), tuple(rng.choices((0, 1), k=rng.randrange(1, 4))), ())
        state, output = ClosingState(wanted), []
        for _ in range(12):
            plain = closing(torch.zeros(2), wanted, output)
            assert (state.forced is None) == bool(plain.isfinite().all())
            if state.forced is not None:
                assert int(plain.argmax()) == state.forced
            token = rng.randrange(2) if state.forced is None else state.forced
            output.append(token)
            state.accept(token)
            state = state.copy()


def test_the_sampler_obeys_and_reports_the_models_own_logprob() -> None:
    params = SamplingParams(closing=Closing(1, (3,)), logprobs=0, temperature=0, logit_bias={3: -100.0})
    state = SampleState(params, [1], output_ids=[0])
    logits = torch.tensor([[5.0, 0.0, 0.0, 1.0]])
    own = float(logits.log_softmax(-1)[0, 3])
    (sampled,) = Sampler().sample(logits, [state])
    assert sampled.token_id == 3
    assert sampled.logprob == pytest.approx(own)


def test_bad_wishes_are_refused() -> None:
    for bad in ({"after": 0, "ids": (1,)}, {"after": 1, "ids": ()}):
        with pytest.raises(ConfigError):
            Closing(**bad)
    with pytest.raises(ConfigError, match="closing"):
        SamplingParams(closing=3)  # type: ignore[arg-type]
