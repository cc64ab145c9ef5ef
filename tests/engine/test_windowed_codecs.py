"""Codecs that encode whole pages beside a raw window: exact within the window, counted bytes."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from pagoda import ConfigError, SamplingParams
from pagoda.core.types import KVFormat
from pagoda.engine.calibrations import Calibrations
from pagoda.kernels.dispatch import restricted
from pagoda.kernels.ops.page_numbers import reference as page_numbers_reference
from pagoda.kv.dense import attend_dense
from pagoda.kv.grammar import parse_policy
from pagoda.kv.manager import KVManager
from pagoda.kv.page_codes import PageCodes
from pagoda.kv.pages import PagePool
from pagoda.kv.policies import POLICIES
from pagoda.kv.policies._windowed import Seen, WindowedCodec, pack, unpack
from pagoda.kv.policies.base import Need
from pagoda.kv.raw_tail import RawTail, page_ids
from pagoda.kv.storage import PageStorage
from pagoda.kv.stored_formats import windowed_format
from pagoda.kv.window_view import WindowView

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
    k, v = (numbers(2, 4, 2, size, dim) for dim in (k_dim, v_dim))
    learned = learned_by(codec, k.flatten(2, 3), v.flatten(2, 3))
    for layer in range(2):
        kept = k[layer].flatten(1, 2).transpose(0, 1)
        k[layer] = codec.share(kept, kept, {n: x[layer] for n, x in learned.items()})[1].transpose(0, 1).view_as(k[0])
    seen = Seen(learned, k.flatten(2, 3), numbers(2, 5, 8, k_dim), 0.3)
    pages = codec.encode(k, v, seen)
    assert pages.shape == (2, 4, 2, codec.page_bytes(size, k_dim, v_dim))
    assert pages.dtype == torch.uint8
    again = codec.decode(pages[1], size, k_dim, v_dim, {key: x[1] for key, x in seen.learned.items()})
    for x, y in zip((k[1], v[1]), again, strict=True):
        assert y.shape == x.shape
        assert float((x - y).square().mean() / x.square().mean()) < 0.2


def numbers(*shape: int) -> torch.Tensor:
    """Slots that depend on few things, in channels of many sizes, as those of models do."""
    generator = torch.Generator().manual_seed(shape[-1])
    few = torch.randn(*shape[:-1], 4, generator=generator) @ torch.randn(4, shape[-1], generator=generator)
    noise = 0.1 * torch.randn(*shape, generator=generator)
    return (few + noise) * torch.logspace(0.3, -0.7, shape[-1])


def learned_by(codec: Any, k: torch.Tensor, v: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a calibration on these very numbers ``[L, H, N, dim]`` finds."""
    if Need.CALIBRATION not in codec.needs:
        return {}
    learned: dict[str, torch.Tensor] = codec.learn(*(x.repeat(1, 1, 600 // x.shape[2] + 1, 1) for x in (k, v)))
    return learned


@pytest.mark.parametrize("name", [*NAMES, "kivi(bits=4)", "int2(keys='token')", "bfp_outlier_rearrange(mantissa=8)",
                                  "zipcache(salient=0.0)", "zipcache(salient=1.0)"])  # fmt: skip
@pytest.mark.parametrize("shape", [(8, 8, 8), (16, 64, 64), (32, 40, 24)])
def test_the_kernels_decode_what_torch_decodes(name: str, shape: tuple[int, int, int]) -> None:
    """Every page of a storage whose rows are wider than a page, under every instruction set, in both dtypes."""
    cpu = pytest.importorskip("pagoda.kernels.cpu", reason="the C++ extension is not built", exc_type=ImportError)
    codec = parse_policy(name).windowed
    assert codec is not None
    size, k_dim, v_dim = shape
    k, v = (numbers(1, 4, 3, size, dim) for dim in (k_dim, v_dim))
    learned = learned_by(codec, k.flatten(2, 3), v.flatten(2, 3))
    pages = codec.encode(k, v, Seen(learned, k.flatten(2, 3), numbers(1, 5, 8, k_dim), 0.3))[0]
    code = codec.code(size, k_dim, v_dim, {key: x[0] for key, x in learned.items()})
    if code.sides is None:
        pytest.skip(f"{name} is decoded in torch alone")
    storage = torch.nn.functional.pad(pages.flatten(0, 1), (0, 5))
    ids, places = torch.arange(12).view(4, 3).flip(1), torch.tensor([4, 0, 2])
    for dtype, close in ((torch.float32, 1e-5), (torch.bfloat16, 8e-3)):
        wanted = [torch.zeros(4, 5, size * dim, dtype=dtype) for dim in (k_dim, v_dim)]
        page_numbers_reference(storage, ids, places, *wanted, code)
        for isa in ("base", cpu.best_isa()):
            got = [torch.zeros_like(x) for x in wanted]
            cpu.page_numbers(storage, ids, places, *got, code, isa=isa)
            for one, other in zip(got, wanted, strict=True):
                torch.testing.assert_close(one, other, rtol=close, atol=close)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_codes_are_packed_without_loss(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (3, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))
    assert pack(codes, bits).shape == (3, 24 * bits // 8)
    assert torch.equal(unpack(pack(codes, bits), bits), codes)


@pytest.mark.parametrize("name", NAMES)
def test_a_window_beyond_the_context_is_exact(make_llm: Any, oracle: Any, name: str) -> None:
    shares = POLICIES.get(name).share is not WindowedCodec.share  # type: ignore[attr-defined]
    whole = ", keys=1.0" if shares else ""  # what is raw is as it was, but for heads that have no keys of their own
    outputs = make_llm().generate(PROMPTS, params(f"{name}(window=400{whole})"))
    assert [output.token_ids for output in outputs] == [oracle(ids, 16) for ids in PROMPTS]


@pytest.mark.parametrize("name", NAMES)
def test_same_tokens_whatever_happens_around(make_llm: Any, oracle: Any, tiny: Path, name: str) -> None:
    """Alone; in small chunks, twice beside other formats."""
    kv = f"{name}(window=8, every=8)"
    alone = [make_llm(page_size=8).generate([ids], params(kv, 24))[0].token_ids for ids in PROMPTS]
    assert alone[2] != oracle(PROMPTS[2], 24)
    learned = Calibrations(tiny).load(name) if Need.CALIBRATION in POLICIES.get(name).needs else {}  # type: ignore[attr-defined]
    room = kv_bytes(28) + sum(t.nbytes for t in learned.values())
    llm = make_llm(page_size=8, max_num_batched_tokens=24, max_num_seqs=8, kv_memory=room, max_model_len=128)
    for _ in range(2):
        mixed = llm.generate(
            [*PROMPTS, *PROMPTS[:2]], [params(kv, 24)] * 3 + [params("recent(budget=9)"), params("int8")]
        )
        assert [output.token_ids for output in mixed[:3]] == alone


@pytest.mark.parametrize("name", NAMES)
def test_attention_is_that_over_what_pages_and_raw_tokens_hold(name: str, monkeypatch: Any) -> None:
    """Three sequences of one step, in one call or in three, beside the plain twin: decode, put together, attend."""
    fmt, codec = KVFormat(2, 2, 8, 8, 4, "float32"), POLICIES.get(name)(window=3, every=4)  # type: ignore[operator]
    stored = windowed_format(fmt, codec)
    storage = PageStorage(stored, 40)
    manager = KVManager(stored, PagePool(stored, 40), None)
    tables, tails, lens, q_lens = [], [], [21, 0, 9], [1, 5, 2]
    k, v, q = numbers(2, 30, 2, 8), numbers(2, 30, 2, 8).flip(1), numbers(2, 8, 4, 8)
    learned = learned_by(codec, k.transpose(1, 2), v.transpose(1, 2))
    for s, held in enumerate(lens):
        manager.admit(s, [1])
        manager.reserve(s, held + q_lens[s])
        tables.append(manager.table(s))
        tails.append(RawTail(stored, 4))
        if held:
            for layer in range(2):
                tails[s].put(layer, 0, k[layer, :held], v[layer, :held])
            manager.commit(s, [1] * held)
            tails[s].encode(codec, storage, tables[s], learned, q[:, :4], 0.3)
            assert 0 < tails[s].start <= held - 3
    codes = PageCodes(stored, lambda: learned, lambda num_bytes: True)
    for scratch, kernels in ((1 << 20, "reference"), (1, "reference"), (1, "cpu")):
        monkeypatch.setattr(import_module("pagoda.kernels.ops.coded_attention"), "SCRATCH_BYTES", scratch)
        view = WindowView(storage, tables, q_lens, [codec] * 3, tails, codes, torch.float32)
        for layer in range(2):
            with restricted(kernels):
                got, first = view.attend(layer, q[layer], k[layer, -8:], v[layer, -8:], scale=0.3), 0
            mine = {key: x[layer] for key, x in learned.items()}
            asked, new = codec.share(q[layer], k[layer, -8:], mine)
            for s, held in enumerate(lens):
                ids = page_ids(tables[s], 0, tails[s].start // 4)[layer]
                pages = storage.pages[torch.from_numpy(ids)][..., : codec.page_bytes(4, 8, 8)]
                old = codec.decode(pages, 4, 8, 8, mine)
                rows = slice(first, first + q_lens[s])
                ends = (k, new), (v, v[layer, -8:])
                raw = (torch.cat([x[layer, tails[s].start : held], y[rows]]) for x, y in ends)
                both = [torch.cat([x.flatten(1, 2).transpose(0, 1), y]) for x, y in zip(old, raw, strict=True)]
                torch.testing.assert_close(got[rows], attend_dense(asked[rows], *both, scale=0.3))
                first += q_lens[s]
    storage.close()


@pytest.mark.parametrize("name", NAMES)
def test_what_an_eviction_leaves_is_encoded(make_llm: Any, name: str) -> None:
    """Pages really go back, at the bytes of both; alone, in small chunks, and once more after it was pushed out."""
    kv = f"snapkv(budget=24, window=8)+{name}(window=0, every=8)"
    if reason := POLICIES.get(name).alone:  # type: ignore[attr-defined]
        with pytest.raises(ConfigError, match=reason):
            parse_policy(kv)
        return
    alone = make_llm(page_size=8).generate([PROMPTS[2]], params(kv, 24))[0]
    llm = make_llm(page_size=8, max_num_batched_tokens=24, max_num_seqs=8)
    mixed = llm.generate([*PROMPTS, PROMPTS[2]], [params("exact"), params(name), params(kv, 24), params("int8")])
    assert mixed[2].token_ids == alone.token_ids
    engine = llm._open().engine
    engine.add(llm._intake.request("0", PROMPTS[2], params(kv, 24)))
    done, steps = None, 0
    while engine.has_work:
        done, steps = (engine.step() or [None])[-1], steps + 1
        if steps == 12:
            sequence = next(iter(engine.scheduler.running.values()))
            manager, codec, fmt = sequence.store.manager, sequence.policy.windowed, sequence.store.fmt
            held = sequence.num_computed - 100 + 24
            assert (manager.table(sequence.seq_id).lens == held).all()
            assert manager.held_bytes(sequence.seq_id) == -(-held // 8) * 4 * fmt.page_bytes
            assert sequence.policy_state.tail.start == (sequence.num_computed // 8 * 8 - 100 + 24) // 8 * 8 > 0
            assert sequence.policy_state.tail.k.shape[2] <= 2 * (codec.every + 8)
            engine.scheduler.preempt(sequence)
    assert done.token_ids == alone.token_ids
    llm._open().audit()


@pytest.mark.parametrize("name", NAMES)
def test_prefixes_are_shared_where_nothing_raw_is_missing(make_llm: Any, name: str) -> None:
    """As many tokens as lie before an act; answers are those without the cache. A raw window shares nothing."""
    kv, ids, other = f"{name}(window=0, every=32)", PROMPTS[2], PROMPTS[2][:70] + prompt(77, 9)
    without = make_llm(page_size=8, enable_prefix_caching=False)
    fresh = [without.generate([x], params(kv))[0] for x in (ids, other)]
    llm = make_llm(page_size=8)
    found = [llm.generate([x], params(kv))[0] for x in (ids, ids, other)]
    assert [x.token_ids for x in found] == [fresh[0].token_ids, fresh[0].token_ids, fresh[1].token_ids]
    assert [x.usage.cached_tokens for x in found] == [0, 96, 64]
    again = [llm.generate([ids], params(f"{name}(window=8, every=8)"))[0] for _ in range(2)]
    assert [x.usage.cached_tokens for x in again] == [0, 0]
    llm._open().audit()


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
    state = sequence.policy_state
    assert engine.stores.state_bytes == state.num_bytes >= state.tail_bytes > 0
    pages = sequence.store.manager.held_bytes(sequence.seq_id)
    assert pages == 13 * 4 * fmt.page_bytes
    assert sequence.group.held_bytes == pages + state.tail_bytes


@pytest.mark.parametrize(
    ("kv", "words"),
    [
        ("h2o+kivi", "h2o+kivi: kivi encodes whole pages of all heads, and h2o drops slots again and again"),
        ("snapkv+ada+kivi", "ada gives heads different numbers of slots"),
        ("kivi+quest", "quest judges pages by keys that it would have to decode first"),
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


def test_models_whose_heads_cannot_be_joined_refuse_by_name(make_llm: Any, tiny: Any) -> None:
    for kv, words in (
        ("kv_heads_compress(group=4)", "its 2 kv-heads do not make groups of 4"),
        ("chai(keys=0.3)", "keys=0.3 of its 2 kv-heads with 8 channels is no whole number"),
        ("eigen_attention(keep=0.0)", "keep=0.0; give a share of the dimensions"),
        ("kv_heads_compress(group=3)", "group=3; accepted: 2, 4"),
    ):
        with pytest.raises(ConfigError, match=words):
            make_llm().generate([PROMPTS[0]], params(kv))


def test_half_the_dimensions_hold_most_of_what_lanterns_heads_do() -> None:
    """Bases that were calibrated lose less of keys and values than leaving the weakest half of the channels away."""
    from pagoda.bench.calibration.base import Seen as Look
    from pagoda.bench.calibration.base import run, sample_ids, usual
    from pagoda.bench.quality.tasks.base import World
    from pagoda.engine.calibrations import Calibrations
    from pagoda.kernels.dispatch import restricted
    from pagoda.models.load import load_model

    with restricted("reference"):
        loaded = load_model("lantern", dtype="float32")
        seen: list[Look] = []
        with torch.inference_mode():
            run(loaded.model, sample_ids(World.make(loaded.tokenizer, 256), 1)[0][:96], usual, seen.append)
        read = Calibrations(loaded.path).load
        for kv in ("eigen_attention(keep=0.5)", "kv_heads_compress"):
            codec = parse_policy(kv).windowed
            k, v = (
                torch.stack([getattr(x, n).transpose(0, 1) for x in seen]).unflatten(2, (6, 16)) for n in ("k", "v")
            )
            learned = read(codec.method)
            pages = codec.encode(k, v, Seen(learned))
            for layer in range(4):
                found = codec.decode(pages[layer], 16, 64, 64, {n: x[layer] for n, x in learned.items()})
                for x, y in zip((k[layer], v[layer]), found, strict=True):
                    by_channel = x.square().sum((0, 1, 2)).sort().values
                    assert float((x - y).square().sum()) < float(by_channel[:32].sum())
        loaded.close()


def test_two_bits_by_channel_beat_plain_rounding(make_llm: Any) -> None:
    """On lantern's keys, whose large channels are the same in every token: half the error of plain rounding or less."""
    from pagoda import LLM
    from pagoda.kv.read import read_slots

    with LLM("lantern", memory="4GiB", num_threads=1) as llm:
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
        found, _ = codec.decode(codec.encode(parts, parts, Seen()), 16, parts.shape[-1], parts.shape[-1], {})
        errors[kind] = float((found - parts).square().mean())
    assert errors["channel"] < 0.5 * errors["token"]
