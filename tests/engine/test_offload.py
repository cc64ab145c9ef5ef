"""KV in a lower tier: the tokens of the resident run, in a pool that holds a quarter of it, whoever is beside."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pagoda import LLM, ConfigError, SamplingParams
from pagoda.budget import Ledger
from pagoda.core.errors import RequestError
from pagoda.engine.config import EngineConfig
from pagoda.engine.offloading import far_bytes
from pagoda.engine.sizing import weight_room
from pagoda.kv.grammar import parse_policy
from pagoda.kv.policies import POLICIES
from pagoda.kv.policies.base import Stage
from pagoda.models.shape import ModelShape
from pagoda.weights.quantization import Quantization

from .conftest import kv_bytes
from .kv_policies import of_stage
from .tiny import CONFIG, prompt

PROMPTS = [prompt(1, 480), prompt(2, 150), prompt(3, 33)]
POOL_BLOCKS = 16
"""Of 8 tokens."""

pytestmark = pytest.mark.host


def params(kv: str, num: int = 12, **more: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": num, "ignore_eos": True, "kv": kv, "seed": 5} | more)


@pytest.fixture
def make_far(make_llm: Any) -> Any:
    def make(**options: Any) -> LLM:
        usual = {"page_size": 8, "kv_memory": kv_bytes(POOL_BLOCKS), "kv_offload": "1MiB", "structured_output": False}
        return make_llm(**usual | options)

    return make


def tokens(llm: LLM, asked: Any, how: Any) -> list[list[int]]:
    outputs = llm.generate(asked, how)
    assert [output.error for output in outputs] == [None] * len(outputs)
    return [output.token_ids for output in outputs]


def far(llm: LLM) -> dict[str, Any]:
    return llm.stats()["kv"]["offload"]


WINDOWS = {
    "heads one by one": {"kv_window": kv_bytes(49)},  # 3 heads of 512 tokens are 48 blocks
    "several sequences at once": {"kv_window": "1MiB", "max_num_batched_tokens": 64},
    "single tokens a step": {"max_num_batched_tokens": 3},
}


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("on_disk", [False, True])
def test_whole_heads_come_and_go_and_the_tokens_are_exact(make_far, oracle, tmp_path, window: str, on_disk) -> None:
    llm = make_far(**WINDOWS[window], kv_offload_dir=str(tmp_path) if on_disk else None)
    assert tokens(llm, PROMPTS, params("offload")) == [oracle(ids, 12) for ids in PROMPTS]
    seen = far(llm)
    assert seen["tier"] == ("disk" if on_disk else "host")
    assert seen["num_errors"] == 0
    assert llm.stats()["kv"]["used_bytes"] == 0, "nothing of it was ever in the pool"
    assert list(tmp_path.iterdir()) == [], "the file has no name"


def test_bytes_read_are_those_of_the_context(make_far) -> None:
    """A decode step reads every page that holds a slot, of every head, once; it writes the one that its token is in."""
    llm = make_far(enable_prefix_caching=False)
    before = [far(llm)]
    for num in (1, 9):
        tokens(llm, [PROMPTS[0]], params("offload", num))
        before.append(far(llm))
    page = 4 * 16 * 8 * 4  # layers x heads, numbers of a slot, slots, bytes
    extra = [before[2][name] - 2 * before[1][name] for name in ("read_bytes", "written_bytes")]
    assert extra == [page * sum(-(-held // 8) for held in range(480, 488)), page * 8]


REMOTE = [name for name in of_stage(Stage.SELECTION) if POLICIES.get(name).remote]  # type: ignore[attr-defined]


def test_who_can_choose_pages_of_a_lower_tier() -> None:
    """The others look at keys of pages that they do not read, or at all keys together, to note what they note."""
    assert {"a2ats", "lserve", "quest", "shadowkv", "sparq", "tokenselect"} <= set(REMOTE)
    for name in set(of_stage(Stage.SELECTION)) - set(REMOTE):
        with pytest.raises(ConfigError, match=f"accepted before offload: {', '.join(REMOTE)}"):
            parse_policy(f"{name}+offload")


@pytest.mark.parametrize("name", REMOTE)
@pytest.mark.parametrize("window", [kv_bytes(49), "1MiB"])
def test_chosen_pages_alone_come_and_answer_as_resident_ones(make_llm, make_far, name: str, window: str) -> None:
    kv = f"{name}(pages=0.25)"
    near = tokens(make_llm(page_size=8), PROMPTS, params(kv, 24))
    llm = make_far(kv_window=window, kv_memory=kv_bytes(64))  # room for what is noted of pages
    storage, widths = llm._built.engine.stores.offloaded.storage, []
    gather = storage.gather
    storage.gather = lambda ids: widths.append(ids.shape[1]) or gather(ids)
    assert tokens(llm, PROMPTS, params(f"{kv}+offload", 24)) == near
    assert set(widths) == {1}, "a prompt's pages are noted while they are in memory, later ones when they are full"
    seen, steps = far(llm), llm.stats()["steps"]
    assert seen["pages_asked"] == steps["pages_read"] < 0.4 * steps["pages_held"]
    if window == "1MiB":
        assert seen["hits"] > 0.7 * seen["pages_asked"], "what was chosen is chosen again"
    else:
        assert 0 < seen["hits"] < seen["pages_asked"]
    assert tokens(llm, PROMPTS, params(f"{kv}+offload", 4)) == [ids[:4] for ids in near], "with prefixes found"
    assert set(widths) == {1}


@pytest.mark.parametrize("kv", ["offload", "quest(pages=0.5)+offload"])
def test_pages_of_a_codec_come_and_go_as_they_are(make_llm, make_far, tmp_path: Path, kv: str) -> None:
    """``kv_cache_dtype`` is of the engine, tier and window included: fewer bytes, and the tokens of resident KV."""
    resident = kv.replace("offload", "exact").removesuffix("+exact")
    near = tokens(make_llm(page_size=8, kv_cache_dtype="int8"), PROMPTS, params(resident, 20))
    llm = make_far(
        kv_cache_dtype="int8", kv_offload_dir=str(tmp_path), kv_window=kv_bytes(49), enable_prefix_caching=False
    )
    assert tokens(llm, PROMPTS, params(kv, 20)) == near
    moved = far(llm)["written_bytes"]
    plain = make_far(kv_offload_dir=str(tmp_path), enable_prefix_caching=False)
    tokens(plain, PROMPTS, params(kv, 20))
    assert moved / far(plain)["written_bytes"] == pytest.approx(20 / 64, rel=0.01), (
        "a slot of int8 beside one of float32"
    )


def test_what_is_free_again_takes_no_bytes_of_the_disk(make_llm, tmp_path: Path) -> None:
    """Pages of 4 KiB, as file systems count: of two long requests one goes, then the other."""
    options = {"page_size": 64, "kv_memory": "1MiB", "kv_offload": "12MiB", "kv_offload_dir": str(tmp_path)}
    llm = make_llm(**options, max_model_len=512, structured_output=False, enable_prefix_caching=False)
    file = llm._built.engine.stores.offloaded.storage.tier._file.fileno()

    def on_disk() -> int:
        return os.fstat(file).st_blocks * 512

    first, second = llm.stream(PROMPTS[0], params("offload")), llm.stream(PROMPTS[1], params("offload", 30))
    next(first)
    next(second)
    both = on_disk()
    assert both >= 11 * 4 * 64 * 64, "eleven blocks of four pages of 64 slots of 64 bytes"
    list(second)
    list(first)
    assert on_disk() < 1 << 14, "but for the file system's own lists"
    assert far(llm)["freed_bytes"] == 11 * 4 * 64 * 64


def test_whoever_is_beside_has_the_whole_pool(make_far, oracle) -> None:
    """Of the 480 offloaded tokens the pool has none: a resident request fills it to the last block meanwhile."""
    asked, kinds = [PROMPTS[0], prompt(7, 112), PROMPTS[1]], ("offload", "exact", "quest(pages=400)+offload")
    llm = make_far(max_num_batched_tokens=100)
    with pytest.raises(RequestError, match="need"):
        llm.generate([PROMPTS[0]], params("exact"))
    got = tokens(llm, asked, [params(kv, 16) for kv in kinds])
    assert got == [oracle(ids, 16) for ids in asked]
    assert llm.stats()["queue"]["preemptions"] == 0


def test_prefixes_and_answers_share_offloaded_pages(make_llm, make_far) -> None:
    how = params("offload", 20, n=3, temperature=1.0)
    near = make_llm(page_size=8).generate([PROMPTS[1]], params("exact", 20, n=3, temperature=1.0))[0]
    llm = make_far()
    for cached in (0, 144):
        output = llm.generate([PROMPTS[1]], how)[0]
        assert [one.token_ids for one in output.outputs] == [one.token_ids for one in near.outputs]
        assert output.usage.cached_tokens == cached
    chosen = llm.generate([PROMPTS[1]], params("quest(pages=400)+offload", 4))[0]
    assert chosen.usage.cached_tokens == 144, "who chooses pages finds what others computed"


def test_a_full_tier_makes_sequences_wait_and_give_way(make_far, oracle) -> None:
    asked = [prompt(seed, 100) for seed in range(5)]
    llm = make_far(kv_offload=kv_bytes(34), kv_window="1MiB", enable_prefix_caching=False, max_num_batched_tokens=64)
    for kv in ("offload", "quest(pages=400)+offload"):
        assert tokens(llm, asked, params(kv, 40)) == [oracle(ids, 40) for ids in asked]
    assert llm.stats()["queue"]["preemptions"] > 0
    assert far(llm)["used_bytes"] == 0


def test_an_aborted_request_leaves_nothing(make_far) -> None:
    llm = make_far(enable_prefix_caching=False)
    for kv in ("offload", "quest+offload"):
        for number, _ in enumerate(llm.stream(PROMPTS[0], params(kv))):
            assert far(llm)["used_bytes"] > 0
            if number == 3:
                break
        assert far(llm)["used_bytes"] == 0


@pytest.mark.parametrize("kv", ["offload", "quest(pages=0.5)+offload"])
@pytest.mark.parametrize("fails", ["reading", "writing"])
def test_a_disk_that_fails_ends_its_requests_alone(make_far, oracle, tmp_path: Path, kv: str, fails: str) -> None:
    """The file is replaced under the engine: by a full device, or by one that cannot be read."""
    llm = make_far(kv_offload_dir=str(tmp_path), max_num_batched_tokens=64)
    stream, beside = llm.stream(PROMPTS[1], params(kv, 40)), prompt(9, 40)
    for _ in range(4):
        next(stream)
    full, blind = ("/dev/full", os.O_RDWR), (tmp_path / "other", os.O_CREAT | os.O_WRONLY)
    bad = os.open(*(full if fails == "writing" else blind))
    os.dup2(bad, llm._built.engine.stores.offloaded.storage.tier._file.fileno())
    os.close(bad)
    assert tokens(llm, [beside], params("exact")) == [oracle(beside, 12)]
    last = list(stream)[-1]
    assert str(last.finish_reason) == "error"
    assert f"{fails} its offloaded KV failed in {tmp_path}" in last.error
    assert far(llm)["num_errors"] > 0
    assert tokens(llm, [beside], params("exact")) == [oracle(beside, 12)]


def test_a_copy_that_fails_is_not_taken_for_the_page(make_far, tmp_path: Path) -> None:
    """The answers of one prompt write into copies of its last page; here those copies cannot be made."""
    llm = make_far(kv_offload_dir=str(tmp_path))
    storage = llm._built.engine.stores.offloaded.storage
    copy, file = storage.run_copies, storage.tier._file.fileno()

    def fail(copies: Any) -> None:
        kept, full = os.dup(file), os.open("/dev/full", os.O_RDWR)
        os.dup2(full, file)
        copy(copies)
        os.dup2(kept, file)
        os.close(full)
        os.close(kept)

    storage.run_copies = fail
    output = llm.generate([PROMPTS[2]], params("offload", n=2))[0]
    assert f"writing its offloaded KV failed in {tmp_path}" in output.error


def test_bytes_are_leased_and_go_back(make_far) -> None:
    llm = make_far(kv_offload="1MiB")
    accounts = llm.stats()["memory"]["accounts"]
    assert accounts["cache"]["leased_bytes"] == 1 << 20
    assert accounts["staging"]["leased_bytes"] >= far(llm)["window_bytes"] == kv_bytes(128)
    assert llm.max_model_len == 512
    ledger = llm._built.ledger
    llm.set_budget("1GiB")
    assert llm.max_model_len == 512
    llm.close()
    assert ledger.leased_bytes == 0


def test_weights_that_stream_leave_room_for_tier_and_window() -> None:
    """They are sized before the tier is opened, and would have taken its bytes."""
    shape = ModelShape.from_config(CONFIG)
    with_tier = EngineConfig("m", kv_offload="1MiB", kv_window="512KiB", page_size=8)
    rooms = [
        weight_room(one, Ledger(1 << 30), lambda: 1 << 30, partial(far_bytes, one))(shape, "float32", Quantization())
        for one in (EngineConfig("m", page_size=8), with_tier)
    ]
    assert rooms[0].whole - rooms[1].whole == (1 << 20) + (1 << 19)
    assert rooms[0].streaming - rooms[1].streaming == (1 << 20) + (1 << 19)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv": "offload", "kv_offload": None}, "kv_offload does not say"),
        ({"kv_offload": None, "kv_window": "1MiB"}, "kv_window is '1MiB', but kv_offload"),
        ({"kv_offload": 0}, "kv_offload is 0"),
        ({"kv_offload": 100}, "less than 8 tokens"),
        ({"kv_window": 1000}, "3 heads of a sequence of 512 tokens take 96.0 KiB"),
        ({"kv_offload_dir": "/nowhere"}, "cannot be used"),
    ],
)
def test_options_that_cannot_work_are_refused(make_far, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_far(**options)


@pytest.mark.parametrize(
    ("kv", "message"),
    [
        ("snapkv+offload", "snapkv moves slots about"),
        ("int8+offload", "of the engine's own format"),
        ("loki+offload", "keys of pages that it does not read would"),
        ("offload+quest", "must come first"),
        ("offload(tier=1)", "no parameter 'tier'"),
    ],
)
def test_compositions_that_make_no_sense_are_refused(make_far, kv: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_far().generate([[1, 2]], params(kv))


def test_without_a_tier_a_request_is_refused(make_llm) -> None:
    with pytest.raises(ConfigError, match="no tier to go to; start with kv_offload"):
        make_llm().generate([[1, 2]], params("offload"))
