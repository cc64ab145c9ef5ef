"""The paged view against its dense twin: every granularity, mixed batches, chunks, decode, options, sharing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random

import numpy as np
import pytest
import torch

from pagoda.core.types import Granularity, KVFormat
from pagoda.kv.dense import DenseCache, DenseView
from pagoda.kv.manager import KVManager
from pagoda.kv.pages import PagePool
from pagoda.kv.prefix import PrefixCache
from pagoda.kv.read import read_slots
from pagoda.kv.storage import PageStorage
from pagoda.kv.table import PageTable
from pagoda.kv.view import StepView, StepViews

FMT = KVFormat(num_layers=3, num_kv_heads=2, k_dim=8, v_dim=8, page_size=4, dtype="float32")
S, L, H = Granularity.SEQUENCE, Granularity.LAYER, Granularity.HEAD
MIXES = {"sequence": [S, S, S], "layer": [L, L, L], "head": [H, H, H], "mixed": [S, H, L]}
OPTIONS = {
    "plain": {},
    "window": {"window": 5},
    "soft_cap": {"soft_cap": 2.0},
    "sinks": {"sinks": torch.linspace(-1, 1, 4)},
    "alibi": {"alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625])},
}


class Pair:
    """A paged and a dense world that are given the same keys, values and queries."""

    def __init__(self, fmt: KVFormat = FMT, num_blocks: int = 40) -> None:
        self.fmt = fmt
        self.pool = PagePool(fmt, num_blocks)
        self.manager = KVManager(fmt, self.pool, PrefixCache(self.pool))
        self.storage = PageStorage(fmt, num_blocks)
        self.storage.pages.fill_(float("nan"))  # nobody may read what was never written
        self.cache = DenseCache()
        self.make = torch.Generator().manual_seed(0)

    def rand(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.make)

    def step(self, chunks: dict[int, int], *, collect_probs: object = False, **options: object) -> None:
        """Every sequence id brings that many new tokens; results must agree in all layers."""
        fmt, manager, num = self.fmt, self.manager, sum(chunks.values())
        for seq_id, n in chunks.items():
            assert manager.reserve(seq_id, n)
        self.storage.run_copies(manager.take_copies())
        tables = [manager.table(seq_id) for seq_id in chunks]
        view = StepView(self.storage, tables, list(chunks.values()), collect_probs=collect_probs)
        dense = DenseView(self.cache, list(chunks), list(chunks.values()))
        for layer in range(fmt.num_layers):
            q = self.rand(num, 4, fmt.k_dim)
            k, v = self.rand(num, fmt.num_kv_heads, fmt.k_dim), self.rand(num, fmt.num_kv_heads, fmt.v_dim)
            want = dense.attend(layer, q, k, v, scale=0.3, **options)
            got = view.attend(layer, q, k, v, scale=0.3, **options)
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
            watched = range(len(tables)) if collect_probs is True else collect_probs or ()
            found = view.received[0] if view.received else None
            assert set(found.members if found else ()) == set(watched)
            for i, s in enumerate(found.members if found else ()):
                sums = found.sums[layer, i, :, : found.num_slots[i]]
                torch.testing.assert_close(sums, dense.prob_sums[layer][s], rtol=1e-5, atol=1e-5)
        for seq_id, n in chunks.items():
            manager.commit(seq_id, [7] * n)

    def keep(self, seq_id: int, layer: int, head: int, slots: list[int]) -> None:
        self.storage.run_copies(self.manager.take_copies())
        moves = self.manager.keep(seq_id, layer, head, slots)
        assert moves is not None
        self.storage.run_moves(moves)

    def held(self, seq_id: int, layer: int, head: int) -> torch.Tensor:
        """Keys of one head, read back slot by slot."""
        table = self.manager.table(seq_id)
        places = [table.locate(layer, head, slot) for slot in range(table.length(layer, head))]
        return torch.stack([self.storage.layout.k(self.storage.pages)[page, slot] for page, slot in places])


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("options", OPTIONS)
def test_ragged_steps_equal_the_dense_twin(mix: str, options: str) -> None:
    pair = Pair()
    for seq_id, granularity in enumerate(MIXES[mix]):
        pair.manager.admit(seq_id, [7], granularity=granularity, use_prefix=False)
    for chunks in ({0: 6, 1: 1}, {0: 1, 2: 9, 1: 3}, {0: 1, 1: 1, 2: 1}, {2: 4, 1: 1, 0: 7}):
        pair.step(chunks, **OPTIONS[options])


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("collect", [True, {0}, {2, 1}])
def test_probability_sums_of_the_asked_for_sequences_only(mix: str, collect: object) -> None:
    pair = Pair()
    for seq_id, granularity in enumerate(MIXES[mix]):
        pair.manager.admit(seq_id, [7], granularity=granularity, use_prefix=False)
    pair.step({0: 6, 1: 2, 2: 3}, collect_probs=collect)
    pair.step({0: 1, 1: 1, 2: 1}, collect_probs=collect)


def test_a_residual_that_knows_the_evicted_gives_attention_over_everything() -> None:
    """Beside a neighbour without one, whose answer stays as it is."""
    pair = Pair()
    for seq_id in (0, 1):
        pair.manager.admit(seq_id, [7] * 12, granularity=H, use_prefix=False)
    pair.step({0: 12, 1: 5})
    gone, kept = [1, 4, 5, 9], [0, 2, 3, 6, 7, 8, 10, 11]
    k, v = (torch.stack(x) for x in zip(*[read_slots(pair.storage, pair.manager.table(0), at, 12) for at in range(3)],
            strict=True))  # fmt: skip
    for layer in range(3):
        for head in range(2):
            pair.keep(0, layer, head, kept)

    def residual(q: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = (x[layer][:, gone].repeat_interleave(2, 0) for x in (k, v))
        logits = (q[:, None] @ keys.transpose(1, 2))[:, 0] * 0.3
        return logits.logsumexp(-1), (logits.softmax(-1)[:, None] @ values)[:, 0]

    assert all(pair.manager.reserve(seq_id, 1) for seq_id in (0, 1))
    tables = [pair.manager.table(1), pair.manager.table(0)]
    view = StepView(pair.storage, tables, [1, 1], collect_probs={1}, residuals={1: residual})
    dense = DenseView(pair.cache, [1, 0], [1, 1])
    assert view.arrays() is None
    for layer in range(3):
        inputs = pair.rand(2, 4, 8), pair.rand(2, 2, 8), pair.rand(2, 2, 8)
        want, got = (one.attend(layer, *inputs, scale=0.3) for one in (dense, view))
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_an_evicted_head_attends_over_what_is_left() -> None:
    pair = Pair()
    pair.manager.admit(0, [7] * 9, granularity=H)
    pair.step({0: 9})
    before = {(layer, head): pair.held(0, layer, head) for layer in range(3) for head in range(2)}
    kept = {(0, 0): [0, 5, 8], (0, 1): [1, 2, 3, 4, 5, 6, 7, 8], (2, 1): []}
    for (layer, head), slots in kept.items():
        pair.keep(0, layer, head, slots)
    for (layer, head), keys in before.items():
        want = keys[kept[layer, head]] if (layer, head) in kept else keys
        if len(want):
            torch.testing.assert_close(pair.held(0, layer, head), want, rtol=0, atol=0)
    assert pair.manager.reserve(0, 2)
    pair.storage.run_copies(pair.manager.take_copies())
    view = StepView(pair.storage, [pair.manager.table(0)], [2])
    q, k, v = pair.rand(2, 4, 8), pair.rand(2, 2, 8), pair.rand(2, 2, 8)
    out = view.attend(2, q, k, v, scale=0.3)
    # Head 1 of layer 2 holds nothing: its queries see the chunk alone.
    alone = DenseView(DenseCache(), [0], [2]).attend(2, q, k, v, scale=0.3)
    torch.testing.assert_close(out[:, 2:], alone[:, 2:], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(out[:, :2], alone[:, :2])


def test_latent_pages() -> None:
    fmt = KVFormat(num_layers=2, num_kv_heads=1, k_dim=12, v_dim=0, page_size=4, dtype="float32")
    pair = Pair(fmt)
    for seq_id, granularity in enumerate((S, H)):
        pair.manager.admit(seq_id, [7], granularity=granularity, use_prefix=False)
    for chunks in ([5, 2], [1, 6], [1, 1]):
        for seq_id, n in enumerate(chunks):
            assert pair.manager.reserve(seq_id, n)
        view = StepView(pair.storage, [pair.manager.table(0), pair.manager.table(1)], chunks)
        dense = DenseView(pair.cache, [0, 1], chunks)
        for layer in range(2):
            q, latent = pair.rand(sum(chunks), 4, 12), pair.rand(sum(chunks), 1, 12)
            want = dense.attend_latent(layer, q, latent, v_dim=8, scale=0.2)
            torch.testing.assert_close(view.attend_latent(layer, q, latent, v_dim=8, scale=0.2), want)
        for seq_id, n in enumerate(chunks):
            pair.manager.commit(seq_id, [7] * n)


@pytest.mark.parametrize("granularity", list(Granularity))
def test_forks_diverge_after_a_shared_prompt(granularity: Granularity) -> None:
    pair = Pair()
    pair.manager.admit(0, [7] * 6, granularity=granularity, use_prefix=False)
    pair.step({0: 6})
    pair.manager.fork(0, 1)
    for (layer, seq_id), held in list(pair.cache.kv.items()):
        pair.cache.kv[layer, seq_id + 1] = held
    pair.step({0: 1, 1: 1})
    pair.step({1: 3, 0: 2})


def test_a_step_over_unreserved_slots_is_refused() -> None:
    pair = Pair()
    pair.manager.admit(0, [7])
    with pytest.raises(AssertionError, match="not reserved"):
        StepView(pair.storage, [pair.manager.table(0)], [1])


def test_shapes_that_do_not_fit_are_refused() -> None:
    pair = Pair()
    pair.manager.admit(0, [7])
    assert pair.manager.reserve(0, 2)
    view = StepView(pair.storage, [pair.manager.table(0)], [2])
    q, k = pair.rand(2, 4, 8), pair.rand(2, 2, 8)
    for bad in ((q[:1], k, k), (q, k[:1], k), (q, k, k[..., :4])):
        with pytest.raises(AssertionError, match="for KVFormat"):
            view.attend(0, *bad, scale=1.0)


@pytest.mark.parametrize("grains", [[S], [H], [S, L, H]])
def test_an_index_carried_on_equals_a_new_one(grains: list[Granularity]) -> None:
    """Decode steps with everything between them that changes a table: growth, forks, copies, shared pages, evictions,
    windows whose pages are linked anew, rollbacks, other sequences."""
    pair, random = Pair(num_blocks=3000), Random(3)
    manager, views, live, idle, new_id = pair.manager, StepViews(pair.storage), [0, 1], [], 2
    for seq_id in live:
        manager.admit(seq_id, [7], granularity=random.choice(grains))
        assert manager.reserve(seq_id, 5)
        manager.commit(seq_id, [7] * 5)
    carried = linked = 0
    for _ in range(400):
        move = random.random()
        if move < 0.04 and len(live) < 6:
            manager.fork(random.choice(live), new_id)
            random.choice([live, idle]).append(new_id)  # an idle one makes the other copy its last page
            new_id += 1
        elif move < 0.08 and len(live) > 2:
            manager.release(live.pop(random.randrange(len(live))))
        elif move < 0.12:
            table = manager.table(seq_id := random.choice(live))
            if table.num_tokens - 2 >= max(1, table.kept_at):
                manager.truncate(seq_id, table.num_tokens - 2)
        elif move < 0.14:
            manager.keep_many(seq_id := random.choice(live), _left(manager.table(seq_id), lambda held: range(held - 1)))
        elif move < 0.17:
            table = manager.table(seq_id := random.choice(live))
            linked += int(table.lens.min()) > 8
            # A page goes, the first is written, others move up; perhaps not in all rows.
            manager.keep_many(
                seq_id, _left(table, lambda held: [0, *range(5, held)][:held], random.choice([1.0, 0.5]), random)
            )
        elif move < 0.21:
            seq_id = random.choice(live)
            assert manager.reserve(seq_id, 3)
            manager.commit(seq_id, [7] * 3)
        for seq_id in live:
            assert manager.reserve(seq_id, 1)
        tables, before = [manager.table(seq_id) for seq_id in live], views._view
        view, fresh = views.view(tables, [1] * len(live)), StepView(pair.storage, tables, [1] * len(live))
        carried += view is before
        for got, want in zip(_arrays(view), _arrays(fresh), strict=True):
            width = min(got.shape[-1], want.shape[-1])  # of rows: one may have room for more pages
            assert torch.equal(got[..., :width], want[..., :width])
            assert not got[..., width:].any()
        for seq_id in live:
            manager.commit(seq_id, [random.choice([7, 7, 7, 8])])
    assert carried > 200
    assert linked > 5


def _left(
    table: PageTable, stays: Callable[[int], Iterable[int]], share: float = 1.0, random: Random | None = None
) -> dict[tuple[int | None, int | None], np.ndarray]:
    """What stays of (some of) its rows, as ``KVManager.keep_many`` takes it."""
    layers, heads = range(table.fmt.num_layers), range(table.fmt.num_kv_heads)
    names: list[tuple[int | None, int | None]] = {
        S: [(None, None)], L: [(layer, None) for layer in layers],
        H: [(layer, head) for layer in layers for head in heads],
    }[table.granularity]  # fmt: skip
    chosen = [name for name in names if random is None or random.random() < share]
    return {name: np.array([*stays(table.length(name[0] or 0, name[1] or 0))], np.int32) for name in chosen}


def _arrays(view: StepView) -> list[torch.Tensor]:
    arrays = view.arrays()
    assert arrays is not None
    return [arrays.rows, arrays.row_of, arrays.offset, arrays.kv_lens, arrays.q_starts, arrays.page_ids, arrays.slots]
