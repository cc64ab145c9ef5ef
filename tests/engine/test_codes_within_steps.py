"""Chunks that pass the points at which their pages are encoded: the same as if they ended there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pagoda import SamplingParams
from pagoda.core.types import KVFormat
from pagoda.kernels.dispatch import restricted
from pagoda.kv.grammar import parse_policy
from pagoda.kv.manager import KVManager
from pagoda.kv.page_codes import PageCodes
from pagoda.kv.pages import PagePool
from pagoda.kv.policies import POLICIES
from pagoda.kv.policies._windowed import Learned, WindowedCodec, raw_tokens
from pagoda.kv.policies.base import Need
from pagoda.kv.raw_tail import RawTail
from pagoda.kv.storage import PageStorage
from pagoda.kv.stored_formats import windowed_format
from pagoda.kv.window_view import WindowView

from .tiny import prompt

PLAIN = [name for name, policy in POLICIES.items() if getattr(policy, "plain", False)]
FMT = KVFormat(2, 2, 8, 8, 4, "float32")


def codec_of(kv: str) -> WindowedCodec:
    codec = parse_policy(kv).windowed
    assert codec is not None
    return codec


@pytest.mark.parametrize(
    ("first", "num", "start", "parts"),
    [
        (0, 7, 0, [(7, 0)]),
        (0, 8, 0, [(8, 4)]),
        (5, 1, 0, [(1, 0)]),
        (7, 1, 0, [(1, 4)]),
        (3, 22, 0, [(5, 4), (8, 8), (8, 8), (1, 0)]),
        (20, 4, 12, [(4, 8)]),
        (9, 6, 8, [(6, 0)]),  # more is encoded already than an act now would
    ],
)
def test_where_a_chunk_is_cut(first: int, num: int, start: int, parts: list[tuple[int, int]]) -> None:
    assert codec_of("kivi(window=3, every=8)").parts(first, num, start, 4) == parts


class Run:
    """Chunks of several sequences through the view, as the engine brings them, layer by layer."""

    def __init__(self, codec: WindowedCodec, lens: list[int], learned: Learned) -> None:
        stored, self.learned = windowed_format(FMT, codec), learned
        self.codec, self.storage, pool = codec, PageStorage(stored, 200), PagePool(stored, 200)
        self.manager, self.codes = (
            KVManager(stored, pool, None),
            PageCodes(stored, lambda: learned, lambda num_bytes: True),
        )
        for s, num in enumerate(lens):
            self.manager.admit(s, [1])
            self.manager.reserve(s, num)
        self.tables = [self.manager.table(s) for s in range(len(lens))]
        self.tails = [RawTail(stored, codec.window + codec.every + 4) for _ in lens]
        self.out: list[list[torch.Tensor]] = [[] for _ in lens]

    def step(self, nums: list[int], texts: list[tuple[torch.Tensor, ...]], *, within: bool) -> None:
        """``texts``: q, k, v ``[L, tokens, heads, 8]`` of each sequence."""
        held = [int(table.lens[0]) for table in self.tables]
        encoders = [self.codec if within else None] * len(nums)
        view = WindowView(
            self.storage, self.tables, nums, [self.codec] * len(nums), self.tails, self.codes, torch.float32, None,
            encoders,
        )  # fmt: skip
        layers = []
        for layer in range(2):
            chunk = [[x[layer, at : at + n] for x in text] for text, at, n in zip(texts, held, nums, strict=True)]
            q, k, v = (torch.cat(x) for x in zip(*chunk, strict=True))
            layers.append(view.attend(layer, q, k, v, scale=0.3))
        for s, out in enumerate(torch.stack(layers).split(nums, 1)):
            self.out[s].append(out)
            self.manager.commit(s, [1] * nums[s])
            now = held[s] + nums[s]
            if not within and now % self.codec.every == 0:
                self.tails[s].encode(self.codec, self.storage, self.tables[s], self.learned, None, 0.3)
            elif within:
                act = now // self.codec.every * self.codec.every
                self.tails[s].drop(self.codec.num_encoded(act, 4), now)


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("window", [0, 3, 40])
def test_attends_as_if_chunks_ended_at_acts(name: str, window: int, kernels: str) -> None:
    codec, lens = codec_of(f"{name}(window={window}, every=8)"), [61, 24, 9]
    texts = [tuple(numbers(2, n, heads, 8, seed=n + heads) for heads in (4, 2, 2)) for n in lens]
    learned = {}
    if Need.CALIBRATION in codec.needs:
        learned = codec.learn(*(numbers(2, 2, 300, 8, seed=s) * torch.arange(1, 9) for s in (5, 6)))
    with restricted(kernels):
        plain, whole = Run(codec, lens, learned), Run(codec, lens, learned)
        for first in range(0, 61, 8):
            mine = [max(0, min(8, n - first)) for n in lens]
            plain.step(mine, texts, within=False)
        for nums in ([33, 5, 9], [20, 19, 0], [8, 0, 0]):
            whole.step(nums, texts, within=True)
    for s in range(3):
        torch.testing.assert_close(torch.cat(whole.out[s], 1), torch.cat(plain.out[s], 1), rtol=1e-5, atol=1e-5)
        assert whole.tails[s].start == plain.tails[s].start
        for kind in "kv":
            one, other = (getattr(run.tails[s], kind)[:, :, : lens[s] - run.tails[s].start] for run in (whole, plain))
            assert torch.equal(one, other)
    assert torch.equal(whole.storage.pages, plain.storage.pages)
    assert whole.storage.pages.any()


def numbers(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def params(kv: str, num: int = 24) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=num, ignore_eos=True, kv=kv)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("window", [0, 5])
def test_a_prompt_takes_as_few_steps_as_it_has_chunks(make_llm: Any, monkeypatch: Any, name: str, window: int) -> None:
    """Not as many as there are acts; as one program, and its tokens are those of a prompt whose chunks end at acts."""
    kv, ids = f"{name}(window={window}, every=8)", prompt(3, 203)
    small = make_llm(page_size=8, max_num_batched_tokens=8).generate([ids], params(kv))[0].token_ids
    llm = make_llm(page_size=8)
    llm.generate([prompt(1, 9)], params(kv))  # how its pages are read is known from here on
    monkeypatch.setattr(WindowView, "attend", lambda *args, **options: pytest.fail("a step of several calls"))
    engine = llm._open().engine
    engine.add(llm._intake.request("0", ids, params(kv)))
    steps, done = 0, []
    while engine.has_work:
        done, steps = engine.step(), steps + 1
    assert steps == -(-len(ids) // raw_tokens(len(ids))) + 23
    assert done[0].token_ids == small
    llm._open().audit()


def test_beside_a_prompt_that_stays_raw_until_an_eviction_has_chosen(make_llm: Any) -> None:
    """Whose queries are remembered, in the same step and the same pages."""
    kvs = ["int2(every=8)", "snapkv(budget=24, window=8)+int2(every=8)", "int2(every=8)"]
    prompts = [prompt(5, 90), prompt(6, 100), prompt(7, 31)]
    alone = [make_llm(page_size=8).generate([x], params(kv))[0].token_ids for x, kv in zip(prompts, kvs, strict=True)]
    llm = make_llm(page_size=8)
    found = llm.generate(prompts, [params(kv) for kv in kvs])
    assert [one.token_ids for one in found] == alone
    llm._open().audit()


def test_what_is_raw_in_a_prompt_stays_below_its_bound(make_llm: Any) -> None:
    """A chunk takes no more tokens than are raw at most; between steps as many are raw as between acts."""
    assert [raw_tokens(n) for n in (10, 256, 400, 1024, 2048, 100_000)] == [64, 64, 100, 256, 512, 512]
    llm = make_llm(page_size=8)
    engine = llm._open().engine
    engine.add(llm._intake.request("0", prompt(4, 150), params("int2(every=8)", 2)))
    for end in (64, 128, 150):
        engine.step()
        sequence = next(iter(engine.scheduler.running.values()))
        assert sequence.num_computed == end
        assert sequence.policy_state.tail.k.shape[2] <= 2 * (8 + 8)
        assert engine.stores.state_bytes == sequence.policy_state.tail_bytes > 0
