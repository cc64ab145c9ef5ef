"""Requests of several policies run step by step, with a look at the engine after each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pagoda import SamplingParams

from .tiny import prompt


def run_watched(llm: Any, kvs: list[str], look: Callable[[Any], None]) -> dict[str, list[int]]:
    """Tokens of a request for each of ``kvs``. ``look`` sees the result of every step when the policies have acted.
    What it raises is raised here, since an engine goes on after a failed step.
    """
    engine, tokens = llm._open().engine, dict[str, list[int]]()
    raised: list[BaseException] = []
    apply = engine._evictor.apply

    def watched(result: Any) -> Any:
        failed = apply(result)
        try:
            look(result)
        except BaseException as error:
            raised.append(error)
            raise
        for piece in result.pieces:
            tokens[piece.sequence.group.request.request_id] = piece.sequence.tokens
        return failed

    engine._evictor.apply = watched
    for index, kv in enumerate(kvs):
        params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, kv=kv)
        engine.add(llm._intake.request(str(index), prompt(70 + index, 45 + 9 * index), params))
    while engine.has_work:
        engine.step()
        if raised:
            raise raised[0]
    return tokens
