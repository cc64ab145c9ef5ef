"""Codecs that encode whole pages beside a raw window: exact within the window, counted bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pagoda import ConfigError, SamplingParams
from pagoda.kv.grammar import parse_policy
from pagoda.kv.policies import POLICIES
from pagoda.kv.policies._windowed import WindowedCodec, pack, unpack

from .conftest import kv_bytes
from .tiny import prompt

NAMES = [name for name, policy in POLICIES.items() if issubclass(policy, WindowedCodec)]  # type: ignore[arg-type]
PROMPTS = [prompt(40, 61), prompt(41, 18), prompt(42, 100)]


def params(kv: str, num: int = 16, **more: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=num, ignore_eos=True, seed=5, kv=kv, **more)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(8, 8, 8), (16, 64, 64), (32, 40, 24)])
def test_pages_take_the_bytes_that_they_state_and_come_back(name: str, shape: tuple[int, int, int]) -> None:
    codec = POLICIES.get(name)()  # type: ignore[operator]
    size, k_dim, v_dim = shape
    generator = torch.Generator().manual_seed(1)
    k, v = (torch.randn(2, 3, size, dim, generator=generator) for dim in (k_dim, v_dim))
    pages = codec.encode(k, v)
    assert pages.shape == (2, 3, codec.page_bytes(size, k_dim, v_dim))
    assert pages.dtype == torch.uint8
    again = codec.decode(pages, size, k_dim, v_dim)
    for x, y in zip((k, v), again, strict=True):
        assert y.shape == x.shape
        assert float((x - y).square().mean() / x.square().mean()) < 0.2


@pytest.mark.parametrize("bits", [2, 4])
def test_codes_are_packed_without_loss(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (3, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))
    assert pack(codes, bits).shape == (3, 24 * bits // 8)
    assert torch.equal(unpack(pack(codes, bits), bits), codes)


@pytest.mark.parametrize("name", NAMES)
def test_a_window_beyond_the_context_is_exact(make_llm: Any, oracle: Any, name: str) -> None:
    outputs = make_llm().generate(PROMPTS, params(f"{name}(window=400)"))
    assert [output.token_ids for output in outputs] == [oracle(ids, 16) for ids in PROMPTS]


@pytest.mark.parametrize("name", NAMES)
def test_same_tokens_whatever_happens_around(make_llm: Any, oracle: Any, name: str) -> None:
    """Alone; in small chunks beside other formats; pushed out and computed again; several answers of one prompt."""
    kv = f"{name}(window=8, every=8)"
    alone = [make_llm(page_size=8).generate([ids], params(kv, 24))[0].token_ids for ids in PROMPTS]
    assert alone[2] != oracle(PROMPTS[2], 24)
    llm = make_llm(page_size=8, max_num_batched_tokens=24, max_num_seqs=8, kv_memory=kv_bytes(28), max_model_len=128)
    for _ in range(2):
        mixed = llm.generate(
            [*PROMPTS, *PROMPTS[:2]], [params(kv, 24)] * 3 + [params("recent(budget=9)"), params("int8")]
        )
        assert [output.token_ids for output in mixed[:3]] == alone
    several = llm.generate([PROMPTS[0]], params(kv, 24, n=3))[0]
    assert [answer.token_ids for answer in several.outputs] == [alone[0]] * 3
    engine, intake = llm._open().engine, llm._intake
    for index, ids in enumerate(PROMPTS):
        engine.add(intake.request(str(index), ids, params(kv, 24)))
    done, steps = {}, 0
    while engine.has_work:
        done.update((output.request_id, output.token_ids) for output in engine.step())
        steps += 1
        if steps in (12, 20):
            for sequence in list(engine.scheduler.running.values()):
                engine.scheduler.preempt(sequence)
    assert [done[str(index)] for index in range(3)] == alone
    llm._open().audit()
    assert engine.stores.state_bytes == 0


@pytest.mark.parametrize("name", NAMES)
def test_its_bytes_are_counted(make_llm: Any, name: str) -> None:
    """Pages at their size, raw tokens in the policies' account, both in what the request says that it holds."""
    llm = make_llm(page_size=8)
    engine = llm._open().engine
    engine.add(llm._intake.request("0", PROMPTS[2], params(f"{name}(window=8, every=8)")))
    while not any(s.num_computed > 100 for s in engine.scheduler.running.values()):
        engine.step()
    sequence = next(iter(engine.scheduler.running.values()))
    codec, fmt = sequence.policy.windowed, sequence.store.fmt
    assert fmt.page_bytes - codec.page_bytes(8, 8, 8) in range(8)
    assert engine.stores.state_bytes == sequence.policy_state.tail_bytes > 0
    pages = sequence.store.manager.held_bytes(sequence.seq_id)
    assert pages == 13 * 4 * fmt.page_bytes
    assert sequence.group.held_bytes == pages + engine.stores.state_bytes


@pytest.mark.parametrize(
    ("kv", "words"),
    [
        ("snapkv+kivi", "snapkv+kivi: kivi2-channel encodes whole pages"),
        ("kivi+quest", "encodes whole pages"),
        ("kivi+int8", "a page has one format"),
        ("kivi(bits=3)", "bits=3; accepted: 2, 4"),
        ("kivi(keys='row')", "accepted: channel, token"),
        ("kivi(window=-1)", "window=-1; give a whole number from 0"),
    ],
)
def test_what_makes_no_sense_is_refused(kv: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_policy(kv)
    assert words in str(caught.value)


def test_two_bits_by_channel_beat_plain_rounding(make_llm: Any) -> None:
    """On lantern's keys, whose large channels are the same in every token: half the error of plain rounding or less."""
    from pagoda import LLM
    from pagoda.kv.read import read_slots

    with LLM("lantern", memory="1GiB", num_threads=1) as llm:
        engine = llm._open().engine
        ids = llm.tokenizer.encode("Once upon a time there was a dog who lived in a tree. " * 12)[:160]
        engine.add(llm._intake.request("0", ids, params("exact", 4)))
        engine.step()
        sequence = next(iter(engine.scheduler.running.values()))
        store = sequence.store
        table = store.manager.table(sequence.seq_id)
        keys = torch.stack([read_slots(store.storage, table, layer, 160)[0] for layer in range(store.fmt.num_layers)])
    parts = keys.unflatten(2, (10, 16))
    errors = {}
    for kind in ("channel", "token"):
        codec = parse_policy(f"kivi(keys={kind!r})").windowed
        found, _ = codec.decode(codec.encode(parts, parts), 16, parts.shape[-1], parts.shape[-1])
        errors[kind] = float((found - parts).square().mean())
    assert errors["channel"] < 0.5 * errors["token"]
