"""The picture says of a sequence that waits why it does."""

from __future__ import annotations

from pagoda import SamplingParams
from pagoda.engine.picture import picture_of

from .tiny import prompt


def test_who_waits_is_told_why(make_llm) -> None:
    llm = make_llm(max_num_seqs=1, scheduling="sjf")
    engine, intake = llm._open().engine, llm._intake
    for number in range(3):
        engine.add(intake.request(str(number), prompt(number, 12), SamplingParams(max_tokens=4, temperature=0)))
    engine.step()
    reasons = {told["request"]: told["why"] for told in picture_of(engine)["sequences"]}
    assert reasons["0"] is None
    assert reasons["1"] == "all 1 seats are taken"
    assert "less predicted work" in reasons["2"]
    while engine.has_work:
        engine.step()
