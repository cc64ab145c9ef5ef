"""The soak sees what is wrong: a round on a tiny pool passes, and what is spoiled on purpose is named."""

from __future__ import annotations

import json
import random

import pytest
from benchmarks.mixed_work import random_kv, random_options

from benchmarks import soak
from pagoda import RequestError
from pagoda.engine.config import EngineConfig
from pagoda.kv.grammar import parse_policy
from pagoda.kv.policies import POLICIES

TINY = ["--requests", "16", "--seconds", "0.2", "--longest", "80", "--most-tokens", "12", "--memory", "2GiB"]


def test_a_round_of_any_methods_beside_each_other(capsys, tmp_path) -> None:
    file = tmp_path / "rounds.json"
    assert soak.main([*TINY, "--kv", "all", "--kv-memory", "1MiB", "--json", str(file)]) == 0
    (told,) = json.loads(file.read_text())
    assert told == json.loads(capsys.readouterr().out)
    assert sum(told["outcomes"].values()) == told["requests"] == 16


def test_answers_that_differ_are_named(monkeypatch, capsys) -> None:
    real = soak.ask

    async def spoiled(llm, item, **options):
        answer = await real(llm, item, **options)
        if len(item.ids) == 1:
            return RequestError("no room")
        if getattr(answer, "finished", False):
            answer.outputs[0].token_ids[-1] ^= 1
        return answer

    monkeypatch.setattr(soak, "ask", spoiled)
    assert soak.main([*TINY, "--kv-memory", "4MiB", "--seed", "3"]) == 1
    told = json.loads(capsys.readouterr().out)
    complete = told["outcomes"]["length"]
    assert len(told["wrong"]) >= complete > 4
    assert any("answer 0: token" in one["what"] for one in told["wrong"].values())


def test_what_is_drawn_covers_every_method_and_can_be_built() -> None:
    rng = random.Random(0)
    drawn = {name for _ in range(1500) for name in parse_policy(random_kv(rng, offloads=True)).names}
    assert drawn == set(POLICIES.names()) | {"int8", "int4", "fp8", "offload"}
    for _ in range(200):
        EngineConfig("lantern", **random_options(rng, "/tmp"))


@pytest.mark.parametrize("text", ["scheduling=sjf", "max_num_seqs=3", "kv_host=1MiB", "kv_ttl=None"])
def test_options_are_read_as_python_reads_them(text) -> None:
    name, value = soak.option(text)
    assert f"{name}={value}" == text
    assert isinstance(value, (str, int)) or value is None
