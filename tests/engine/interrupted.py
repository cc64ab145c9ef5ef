"""What may happen to requests on their way: preempted again and again, several answers at once, one that is ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pagoda import SamplingParams


def check_interrupted(
    make: Callable[..., Any], prompts: list[list[int]], forked: list[int], params: SamplingParams
) -> None:
    """Three prompts give the tokens that they give where nobody is interrupted, ``forked`` its three answers; nothing
    is left behind. ``make``: an LLM with these options.
    """
    calm = make(page_size=8)
    wanted = [output.token_ids for output in calm.generate(prompts, params)]
    several = SamplingParams(n=3, seed=8, max_tokens=14, ignore_eos=True, kv=params.kv)
    answers = [answer.token_ids for answer in calm.generate([forked], several)[0].outputs]
    llm = make(page_size=8, max_num_seqs=8)  # a seat for everybody
    engine, intake = llm._open().engine, llm._intake
    for index, ids in enumerate(prompts):
        engine.add(intake.request(str(index), ids, params))
    engine.add(intake.request("several", forked, several))
    engine.add(intake.request("gone", prompts[2], params))
    done, steps, ended = {}, 0, False
    while engine.has_work:
        done.update((output.request_id, output) for output in engine.step())
        steps += 1
        running = list(engine.scheduler.running.values())
        leaving = [s for s in running if s.group.request.request_id == "gone" and s.num_computed > s.prompt_len + 3]
        if leaving:
            engine.abort("gone")
            running, ended = list(engine.scheduler.running.values()), True
            assert leaving[0] not in running
            assert engine.stores.state_bytes == sum(s.policy_state.num_bytes for s in running)
        if steps in (3, 11, 22):
            for sequence in running:
                engine.scheduler.preempt(sequence)
    assert ended, "nobody was ended in the middle of an answer"
    assert "gone" not in done
    assert [done[str(index)].token_ids for index in range(3)] == wanted
    assert [answer.token_ids for answer in done["several"].outputs] == answers
    llm._open().audit()
    assert engine.stores.state_bytes == 0
    for store in engine.stores:
        store.manager.clear_prefix()
        assert store.manager.pool.num_used_pages == 0
