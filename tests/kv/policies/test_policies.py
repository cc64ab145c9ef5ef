"""The text behind ``kv=``: what reads, what is refused, and with which words; what single methods keep."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from pagoda.core.errors import ConfigError
from pagoda.core.types import Granularity
from pagoda.kernels.ops.hash_slots import sign_hashes
from pagoda.kv.grammar import parse_policy
from pagoda.kv.policies import POLICIES
from pagoda.kv.policies._divide import divide_layers
from pagoda.kv.policies._inputs import Inputs
from pagoda.kv.policies._rotary import angles, turn
from pagoda.kv.policies._scored import Scored, keep_best
from pagoda.kv.policies.base import By, Held, Need, Stage
from pagoda.kv.policies.h2o import H2O
from pagoda.kv.policies.hashevict import HashEvict

LAYERS, HEADS, GROUP, WIDTH = 2, 2, 2, 16
TRACKS = {track for name in POLICIES.names() for track in getattr(POLICIES.get(name)(), "tracks", ())}


def inputs(length: int, window: int, *, planted: int | None = None, seed: int = 0, prompt_len: int = 0) -> Inputs:
    """A prompt of random keys, in which all queries look for the key of slot ``planted``."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(LAYERS, HEADS, length, WIDTH, generator=generator)
    values = torch.randn(LAYERS, HEADS, length, WIDTH, generator=generator)
    queries = torch.randn(LAYERS, window, HEADS * GROUP, WIDTH, generator=generator)
    if planted is not None:
        queries = queries * 0.1 + keys[:, :, planted].repeat_interleave(GROUP, 1)[:, None]
    lens = torch.full((LAYERS, HEADS), length)
    mass = (queries.mean(1).view(LAYERS, HEADS, GROUP, WIDTH).mean(2)[:, :, None] * keys).sum(-1).softmax(-1)
    positions = torch.arange(length).expand(LAYERS, HEADS, length)
    tracks = {name: torch.zeros(LAYERS, HEADS, length) for name in TRACKS}
    return Inputs(
        length, prompt_len or length, seed, lens, mass, positions, tracks, {}, {}, queries, WIDTH**-0.5,
        read=lambda layer: (keys[layer], values[layer]),
        read_part=lambda at, first, num, _: tuple(
            x[at.start : at.stop, :, int(first[0, 0]) :][:, :, :num] for x in (keys, values)
        ),
        hash_slots=lambda first, num, planes, hashes: hashes[:, :, int(first[0, 0]) :][:, :, :num].copy_(
            sign_hashes(keys[:, :, int(first[0, 0]) :][:, :, :num], planes)
        ),
    )  # fmt: skip


def test_names_and_parameters() -> None:
    assert parse_policy("exact").exact
    assert parse_policy("recent(budget=7)").eviction == POLICIES.get("recent")(budget=7)  # type: ignore[operator]
    assert parse_policy(" random( budget = 0.25 ) + int8").eviction.budget == 0.25  # type: ignore[union-attr]
    assert parse_policy("streaming-llm(sinks=2)") == parse_policy("streaming_llm(sinks=2)")
    assert parse_policy("snapkv+pyramid").names == ("snapkv", "pyramid")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("snapkw", "accepted: a2ats, ada, alisa"),
        ("recent(budgt=3)", "no parameter 'budgt'; accepted: budget"),
        ("recent(budget='3')", "expected int or float"),
        ("recent(budget=0)", "whole number from 1"),
        ("recent(budget=1.5)", "budget <= 1.0"),
        ("recent(every=0)", "every=0; give a whole number from 1"),
        ("recent(3)", "does not read"),
        ("recent(budget=", "does not read"),
        ("recent(**{})", "key=value"),
        ("recent(budget=open)", "not a number"),
        ("recent+random", "recent+random: both would drop tokens; name one of them"),
        ("pyramid", "pyramid divides the budget of an eviction and has none here"),
        ("pyramid+snapkv", "snapkv (eviction) must come first"),
        ("snapkv+pyramid+ada", "both would divide the budget"),
        ("recent+ada", "recent ranks no slots"),
        ("zigzagkv+ada", "zigzagkv divides its budget itself"),
        ("snapkv(kernel=4)", "kernel=4; give an odd number"),
        ("snapkv+pyramid(slope=1e300)", "slope=1e+300; give a number from 1.0 (equal layers) to 1000"),
        ("zigzagkv(kernel=4)", "kernel=4; give an odd number"),
        ("finch(window=257)", "window=257; give a whole number from 1 to 256"),
        ("windowkv(span=1000000000)", "span=1000000000; give a whole number from 1 to 1024"),
        ("ltri_llm(longest=512)", "longest=512; give a whole number from 1 to 32"),
        ("csr(nonzeros=10000)", "nonzeros=10000; give a whole number from 1 to 256"),
        ("h2o(every=10000000000)", "every=10000000000; give a whole number from 1 to 1073741824"),
        ("attendre(rule='lru')", "accepted: lfa, lra"),
        ("streaming_llm(budget=2)", "budget=2 leaves 1 tokens a head after an act"),
        ("streaming_llm(budget=4, sinks=4)", "so sinks=4 leave no window"),
        ("streaming_llm(budget=40, every=40, sinks=20)", "(every=20 make room), so sinks=20 leave no window"),
        ("exact+exact", "exact+exact: exact keeps all as it is"),
        ("exact+int8", "leave exact away"),
        ("snapkv+exact", "leave exact away"),
        ("exact(a=1)", "no parameters"),
        ("", "does not read"),
    ],
)
def test_what_is_wrong_is_named(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_policy(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


EVICTIONS = [name for name, policy in POLICIES.items() if policy.stage is Stage.EVICTION]  # type: ignore[attr-defined]


def ranks_slots(policy: Any) -> bool:
    return issubclass(policy, Scored) and not policy.allots and Need.CALIBRATION not in policy.needs


SCORERS = [name for name, policy in POLICIES.items() if ranks_slots(policy)]


@pytest.mark.parametrize("name", POLICIES.names())
def test_every_policy_is_documented(name: str) -> None:
    """The generated table takes the first line of the module and of the class, and the paper."""
    policy = POLICIES.get(name)
    assert dataclasses.is_dataclass(policy)
    assert policy.__doc__
    module = __import__(policy.__module__, fromlist=["_"])
    assert module.__doc__.strip().endswith(".")
    controls = ("exact", "recent", "random")
    assert policy.paper.startswith("https://") or name in controls  # type: ignore[union-attr]


@pytest.mark.parametrize("name", EVICTIONS)
def test_the_acts_of_a_policy_and_its_promise_agree(name: str) -> None:
    """Walking from act to act, prompts of any length: the promise never grows between acts but by the new tokens."""
    policy = POLICIES.get(name)()  # type: ignore[operator]
    for prompt_len in (1, 7, 64, 129):
        acts, at = [], 0
        while (act := policy.next_act(at, prompt_len)) is not None and act < 400:
            assert act > at
            assert all(policy.next_act(n, prompt_len) == act for n in range(at, act))
            acts.append(act)
            at = act
        for num_seen in range(1, 200):
            assert policy.most_slots(num_seen, prompt_len) <= num_seen


@pytest.mark.parametrize("name", EVICTIONS)
def test_every_policy_finds_what_the_queries_look_for(name: str) -> None:
    """All queries look for one key in the middle: methods that see queries or attention keep it, and their budget."""
    policy = POLICIES.get(name)
    fields = {field.name for field in dataclasses.fields(policy)}  # type: ignore[arg-type]
    small = {"window": 8, "top": 4, "span": 4, "bits": 24, "every": 8, "budget": 24, "kernel": 5}
    made = policy(**{key: value for key, value in small.items() if key in fields})  # type: ignore[operator]
    if Need.CALIBRATION in made.needs:
        pytest.skip(f"{name} looks where its calibration tells it")
    case = inputs(90, max(1, made.window), planted=41)
    decision = made.act(case)
    kept = decision.keep if decision.keep.dim() == 3 else decision.keep.expand(LAYERS, HEADS, -1)
    assert kept.sum() <= LAYERS * HEADS * made.most_slots(90, 90)
    again = made.act(inputs(90, max(1, made.window), planted=41))
    assert torch.equal(again.keep, decision.keep)
    if made.needs & {Need.QUERIES, Need.PROBS, Need.RECEIVED}:
        assert kept[:, :, 41].all()
        assert kept[:, :, -1].all()


@pytest.mark.parametrize("name", ["alisa", "corm"])
def test_a_slot_that_is_looked_for_speaks_for_its_neighbours(name: str) -> None:
    """What follows a fact that a question finds is looked for later only: with ``kernel=1``, the paper's, it goes."""
    around = slice(38, 45)
    for kernel in (1, 7):
        made = parse_policy(f"{name}(budget=24, every=4, window=4, kernel={kernel})")
        kept = made.act(inputs(90, 4, planted=41)).keep  # type: ignore[union-attr]
        assert kept[:, :, 41].all()
        assert bool(kept[:, :, around].all()) == (kernel == 7)


def test_scope_gives_the_prompt_its_room_until_the_answer_comes_for_it() -> None:
    """A budget of 60: the first act leaves 10 slots free, later ones 16; 24 are the prompt's for good."""
    scope = parse_policy("scope(budget=60, every=16, window=8, prompt_share=0.4)").eviction
    acts = [90]
    while len(acts) < 5:
        acts.append(scope.next_act(acts[-1], 90))  # type: ignore[union-attr, arg-type]
    assert acts == [90, 100, 116, 132, 148]
    memory: dict[str, object] = {}
    held, of_prompt = 90, []
    for act in acts:
        case = dataclasses.replace(inputs(held, 8, planted=20, prompt_len=90), num_seen=act, memory=memory)
        keep = scope.act(case).keep  # type: ignore[union-attr]
        assert keep.sum(-1).eq(50 if act == 90 else 44).all()
        of_prompt.append(memory["prompt"])
        held = 60
    assert of_prompt == [50, 34, 24, 24, 24]


def test_recent_streaming_and_random() -> None:
    def kept(text: str) -> list[int]:
        keep = parse_policy(text).act(inputs(40, 1)).keep  # type: ignore[union-attr]
        return (keep if keep.dim() == 1 else keep[0, 0]).nonzero().flatten().tolist()

    assert kept("recent(budget=8, every=2)") == [34, 35, 36, 37, 38, 39]
    assert kept("recent(budget=0.25, every=1)") == list(range(31, 40))
    assert kept("streaming_llm(budget=8, sinks=2, every=2)") == [0, 1, 36, 37, 38, 39]
    assert len(kept("random(budget=8, every=2)")) == 6
    assert kept("random(budget=8)")[-1] == 39
    assert POLICIES.get("recent").granularity is Granularity.SEQUENCE  # type: ignore[attr-defined]


def test_the_best_slots_stay_and_equals_are_decided_for_the_newer() -> None:
    scores = torch.tensor([[[1.0, 5.0, 1.0, 1.0, -torch.inf]]])
    for budget, kept in ((1, [1]), (2, [1, 3]), (3, [1, 2, 3]), (9, [0, 1, 2, 3])):
        keep = keep_best(scores, torch.tensor([[budget]]))
        assert keep[0, 0].nonzero().flatten().tolist() == kept


def test_budgets_are_divided_without_loss() -> None:
    most = [100] * 3
    assert divide_layers([3.0, 2.0, 1.0], 20, 2, most) == [29, 20, 11]
    assert divide_layers([1.0, 0.0, 0.0], 50, 5, most) == [100, 25, 25]
    assert divide_layers([1.0] * 3, 400, 5, most) == [100, 100, 100]


@pytest.mark.parametrize("allocator", ["ada", "pyramid"])
@pytest.mark.parametrize("name", SCORERS)
def test_allocators_wrap_any_scorer(name: str, allocator: str) -> None:
    """All slots of the budget are spent, whatever the scores; the newest slots that the method insists on stay."""
    made = POLICIES.get(name)
    small = {"window": 8, "top": 4, "bits": 24, "every": 8}
    fields = {field.name for field in dataclasses.fields(made)}  # type: ignore[arg-type]
    chosen = ", ".join(f"{key}={value}" for key, value in small.items() if key in fields)
    stack = parse_policy(f"{name}(budget=24, {chosen})+{allocator}" if chosen else f"{name}(budget=24)+{allocator}")
    keep = stack.act(inputs(90, max(1, stack.window), planted=41)).keep  # type: ignore[union-attr]
    assert int(keep.sum()) == LAYERS * HEADS * stack.eviction.slots_after(90)  # type: ignore[union-attr]
    assert keep[..., -1].all()


DIVIDED = ("snapkv(budget=20, window=4)+ada", "snapkv(budget=20, window=4)+pyramid", "zigzagkv(budget=20, window=4)")


@pytest.mark.parametrize("text", [*DIVIDED, "h2o(budget=28, every=8)+ada(across_layers=True)"])
def test_allocators_spend_exactly_the_budget(text: str) -> None:
    """... and divide it unevenly."""
    stack = parse_policy(text)
    counts = stack.act(inputs(90, 4, planted=30)).keep.sum(-1)  # type: ignore[union-attr]
    assert int(counts.sum()) == LAYERS * HEADS * 20
    assert counts.unique().numel() > 1
    assert int(counts.min()) >= 1


def test_the_method_in_the_docs_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[3] / "docs" / "kv-policies.md").read_text(encoding="utf-8")
    code = page.partition("```py\n")[2].partition("```")[0]
    (tmp_path / "loudest_policy.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = importlib.import_module("loudest_policy").Loudest(budget=20)
    case = inputs(60, 1)
    keep = made.act(case).keep
    norms = case.layer(0).keys.norm(dim=-1)
    assert keep.sum(-1).eq(20).all()
    assert norms[0][keep[0, 0]][:-1].min() > norms[0][~keep[0, 0]].max()


def test_turning_by_angles_is_a_complex_product() -> None:
    generator = torch.Generator().manual_seed(3)
    x, by = torch.randn(2, 5, 12, generator=generator), torch.tensor([0, 1, 7, 300, 9000])
    freq = torch.tensor([10000.0 ** -(i / 6) for i in range(6)])
    plain = torch.complex(x[..., :6].double(), x[..., 6:].double())
    turned = plain * torch.polar(torch.ones(5, 6).double(), (by[:, None] * freq).double())
    torch.testing.assert_close(turn(x, by, freq[None]), torch.cat([turned.real, turned.imag], -1).float())
    cosines, sines = angles(-7, freq).chunk(2)
    torch.testing.assert_close(torch.complex(cosines, sines), torch.polar(torch.ones(6), -7 * freq))


def test_a_class_that_changes_what_it_ranks_by_is_asked_for_its_scores() -> None:
    """Not for the words of the class before, which the kernels would take instead."""

    class Scores(H2O):
        def scores(self, inputs: Inputs) -> torch.Tensor:
            return -super().scores(inputs)

    class Allots(H2O):
        def allot(self, inputs: Inputs, scores: torch.Tensor, slots: int) -> torch.Tensor:
            return super().allot(inputs, scores, slots) // 2

    class Hashes(HashEvict):
        def scores(self, inputs: Inputs) -> torch.Tensor:
            return -super().scores(inputs)

    class Again(Scores):
        by: ClassVar[By] = By.AGE

    class Spares(H2O):
        def recent(self, slots: int) -> int:
            return 3

    held = Held(40, 30, 40, 40, (1, 1), WIDTH, {})
    for one in (Scores(budget=40), Allots(budget=40), Hashes(budget=40)):
        assert one.ranks(held) is None
    assert held.memory == {}
    for other, by, recent in (
        (H2O(budget=40), By.MASS, 10),
        (Again(budget=40), By.AGE, 10),
        (Spares(budget=40), By.MASS, 3),
    ):
        ranking = other.ranks(held)
        assert ranking is not None
        assert (ranking.by, ranking.recent) == (by, recent)
