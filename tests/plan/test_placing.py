"""Placements over an accelerator, its host and a disk: what just fits, what must spill, what counts, and what runs."""

from __future__ import annotations

import itertools

import pytest

from pagoda.core.errors import BudgetError
from pagoda.core.units import GIB, MIB
from pagoda.models.shape import ModelShape
from pagoda.plan.blocks import Block, BlockModel, role_bytes
from pagoda.plan.catalogue import pick_machine
from pagoda.plan.choice import Choice
from pagoda.plan.demand import Demand
from pagoda.plan.kept import Kept
from pagoda.plan.placing import Budgets, Placed, Placer
from pagoda.plan.prices import Prices
from pagoda.plan.subject import Subject
from pagoda.weights.quantization import Quantization, parse_quantization
from tests.plan.public_shapes import SHAPES, config_of

from .test_plans import MACHINE, PRICES

SHAPE = ModelShape.from_config(config_of("Llama-3.1-8B"))
WEIGHTS = SHAPE.weight_bytes("bfloat16")


def placer(device: int, host: int = 64 * GIB, disk: int = 0, prices: Prices | None = None, **demand: int) -> Placer:
    subject = Subject.of("Llama-3.1-8B", config_of("Llama-3.1-8B"))
    asked = Demand(**{"prompt": 512, "output": 128, "concurrency": 8} | demand)
    return Placer(subject, pick_machine("a100-80g"), MACHINE, prices, asked, Budgets(device, host, disk))


def only(found: list[Placed]) -> Placed:
    assert len(found) == 1
    return found[0]


def test_what_fits_lies_on_the_device_and_starts() -> None:
    placed = only(placer(40 * GIB).placements())
    assert all(shares["device"] == 1.0 for shares in placed.placement.shares.values())
    assert placed.block == Block(8, 1)
    assert not placed.why_not
    flags = dict(zip(placed.flags[::2], placed.flags[1::2], strict=True))
    assert flags["--device"] == "cuda"
    assert flags["--device-memory"] == str(40 * GIB)
    assert flags["--max-num-seqs"] == "8"


def test_a_little_less_than_all_weights_and_a_layer_goes() -> None:
    """What is needed, to the byte, is what a run in plenty of memory holds: items and the largest step."""
    plenty = only(placer(40 * GIB, concurrency=1).placements())
    needed = sum(plenty.num_bytes.values()) + plenty.working_bytes
    assert not only(placer(needed, concurrency=1).placements()).why_not
    tight = only(placer(needed - MIB, concurrency=1).placements())
    assert "the engine keeps all on its device so far" in tight.why_not
    assert tight.flags == ()
    away = {name: 1 - shares["device"] for name, shares in tight.placement.shares.items()}
    assert away["head"] == 0.0
    assert 32 * away["weights"] == pytest.approx(round(32 * away["weights"]), abs=1e-4), "whole layers"


def test_kv_that_must_spill_spills_by_what_is_missing() -> None:
    """Few tokens are answered after long prompts, so weights, which every token needs, stay."""
    asked = {"prompt": 8000, "output": 192, "concurrency": 16}
    plenty = only(placer(79 * GIB, **asked).placements())
    assert not plenty.why_not
    kv, missing = plenty.num_bytes["kv"], 4 * GIB
    assert kv == 16 * 512 * SHAPE.kv_format(16, "bfloat16").block_bytes
    room = WEIGHTS + kv + plenty.working_bytes - missing
    spilled = only(placer(room, **asked).placements())
    assert spilled.placement.share("weights", "device") == 1.0
    layer = kv // 32 // spilled.block.batches
    least = missing / kv
    assert least <= spilled.placement.share("kv", "host") <= least + 2 * layer / kv + 1e-6
    assert spilled.tokens_per_second < plenty.tokens_per_second
    used = spilled.placement.used_there["decode"]["kv"].get("host", 0.0)
    assert 0 < used < spilled.placement.share("kv", "host"), "some comes over, the host attends to the rest"


def test_activations_of_batches_that_wait_count() -> None:
    demand, fmt = Demand(1000, 10, 8), SHAPE.kv_format(16, "bfloat16")
    rates = pick_machine("l4").rates(SHAPE)
    model = BlockModel(SHAPE, "bfloat16", Quantization(), fmt, rates, MACHINE)
    kept = Kept(64, 64, 1005.0, 1005.0)
    one, four = ({item.name: item for item in model.items(Block(8 // n, n), kept, demand)} for n in (1, 4))
    assert "activations" not in one, "of one batch they are the step's own"
    assert four["activations"].num_bytes == 8 * 1000 * 4096 * 2
    assert four["activations"].piece == 2 * 1000 * 4096 * 2
    prompt, decode = model.phases(Block(2, 4), kept, demand)
    assert prompt.uses["activations"].read == prompt.uses["activations"].write == 32, "once in every layer"
    assert decode.uses["activations"].read == pytest.approx(32 / 1000)


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "Mixtral-8x7B", "DeepSeek-V3", "gpt2"])
def test_items_are_the_model_to_the_byte(name: str) -> None:
    shape = ModelShape.from_config(config_of(name))
    for found in (Quantization(), parse_quantization("int4")):
        assert sum(role_bytes(shape, "bfloat16", found).values()) == shape.weight_bytes("bfloat16", found)


def test_a_mixture_reads_the_experts_that_were_chosen() -> None:
    shape = ModelShape.from_config(config_of("Mixtral-8x7B"))
    model = BlockModel(
        shape, "bfloat16", Quantization(), shape.kv_format(16, "bfloat16"), pick_machine("l4").rates(shape), MACHINE
    )
    decode = model.phases(Block(1, 1), Kept(64, 64, 500.0, 500.0), Demand(500, 10))[1]
    assert decode.uses["experts"].read == pytest.approx(2 / 8)
    assert decode.uses["weights"].read == 1.0


def test_more_loss_is_only_shown_where_it_is_faster() -> None:
    found = placer(10 * GIB, prices=PRICES, concurrency=32).placements()
    assert len(found) > 2
    assert [one.loss for one in found] == sorted(one.loss for one in found)
    rates = [one.tokens_per_second for one in found]
    assert all(later > 1.02 * sooner for sooner, later in itertools.pairwise(rates))
    assert only(placer(10 * GIB, prices=PRICES, concurrency=32).placements(max_loss=0.0)).choice.quantization == "auto"


def test_the_block_that_is_taken_is_the_best_of_all() -> None:
    one = placer(8 * GIB, concurrency=16)
    taken = only(one.placements())
    for batches in (1, 2, 4, 8, 16):
        other = one._placed(Choice(), Block(16 // batches, batches))
        assert other.tokens_per_second <= one._placed(Choice(), taken.block).tokens_per_second * 1.0001


def test_a_disk_takes_what_the_host_cannot() -> None:
    found = only(placer(6 * GIB, host=8 * GIB, disk=100 * GIB, concurrency=1).placements())
    assert found.placement.share("weights", "disk") > 0.1
    assert found.placement.waits_for["decode"] == "reading from disk"
    with pytest.raises(BudgetError, match=r"do not fit into device .*, host .* together"):
        placer(6 * GIB, host=8 * GIB, concurrency=1).placements()
    with pytest.raises(BudgetError, match="before any weights; give --device-memory or --host-memory more"):
        placer(10 * MIB).placements()


def test_every_public_shape_can_be_placed() -> None:
    """With a disk as large as it takes; in formats of 4 to 16 bits."""
    for name in SHAPES:
        subject = Subject.of(name, config_of(name))
        demand, budgets = Demand(256, 32, 4), Budgets(24 * GIB, 64 * GIB, 2000 * GIB)
        found = Placer(subject, pick_machine("h100-80g"), MACHINE, None, demand, budgets).placements()
        shares = found[0].placement.shares
        assert all(sum(one.values()) == pytest.approx(1.0) for one in shares.values()), name
