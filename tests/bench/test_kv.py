"""The price list: what is spelled, that forced logits are the engine's own, that tables hold what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from pagoda.bench.forced import Case, ForcedEngine
from pagoda.bench.kv import Price, PriceList, front, losers, price, spell
from pagoda.bench.kv_report import added, listed, markdown, methods_table, splice
from pagoda.bench.quality.tasks import TASKS
from pagoda.bench.quality.tasks.base import World
from pagoda.core.errors import ConfigError
from pagoda.kv.policies import POLICIES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def lantern():
    with ForcedEngine("lantern", memory="2GiB", num_threads=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def world(lantern) -> World:
    return World.make(lantern.built.loaded.tokenizer, 320)


def test_policies_are_spelled_with_budgets() -> None:
    found = spell(["snapkv", "h2o(recent_share=0.3)", "recent(budget=9)", "ada", "exact"], [0.25, 64])
    assert [kv for kv, _, _ in found] == [
        "snapkv(budget=0.25)", "snapkv(budget=64)", "h2o(budget=0.25, recent_share=0.3)",
        "h2o(budget=64, recent_share=0.3)", "recent(budget=9)", "snapkv(budget=0.25)+ada", "snapkv(budget=64)+ada",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="accepted: a2ats, ada"):
        spell(["snapkw"], [0.5])
    with pytest.raises(ConfigError, match="has no parameter"):
        spell(["snapkv(windo=3)"], [0.5])


def test_forced_logits_are_those_of_a_free_run(lantern) -> None:
    """Forcing what exact says gives exact's own logits, whatever else is in the batch; a lossy run differs."""
    from pagoda import LLM, SamplingParams

    with LLM("lantern", memory="2GiB", num_threads=1) as llm:
        ids = llm.tokenizer.encode("Once upon a time, there was a little girl named Lily. She loved to play outside.")
        free = llm.generate([ids], SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))[0].token_ids
    case = Case(tuple(ids), tuple(free), tuple(range(12)))
    other = Case(tuple(ids[:9]), (5, 6, 7), (0, 2))
    alone, among = next(lantern.run([case], "exact")), list(lantern.run([other, case, other], "exact"))
    assert alone.hits.all()
    assert among[1].hits.all()
    assert among[0].logits.shape[0] == 2
    assert (among[1].logits - alone.logits).abs().max() < 1e-2
    lossy = next(lantern.run([case], "recent(budget=6)"))
    assert lossy.held_bytes <= 0.5 * alone.held_bytes
    assert (lossy.logits - alone.logits).abs().max() > 0.1


@pytest.mark.parametrize("name", [name for name in TASKS.names() if name != "topics"])
def test_every_task_is_within_its_length_and_lantern_can_do_it(lantern, world, name) -> None:
    task = TASKS.get(name)()  # type: ignore[operator]
    cases = task.cases(world, 3)
    assert cases == task.cases(world, 3)
    assert all(0 < case.num_tokens <= world.length for case in cases)
    assert all(case.scored and max(case.scored) < len(case.forced_ids) for case in cases)
    exact = list(lantern.run(cases, "exact"))
    scores = task.score(exact, exact)
    assert scores.keys() == task.metrics.keys()
    best = {"perplexity": 1000.0, "kl": 0.0}
    for metric, up in task.metrics.items():
        assert scores[metric] >= 0.66 if up else scores[metric] <= best[metric]
    forgetful = task.score(list(lantern.run(cases, "recent(budget=12)")), exact)
    if name != "counting":  # what hangs on the newest tokens alone is there to be unaffected
        assert all((forgetful[m] < scores[m]) if up else (forgetful[m] > scores[m]) for m, up in task.metrics.items())


def test_the_topics_task_says_what_it_needs(world) -> None:
    with pytest.raises(ConfigError, match="say where with --data"):
        TASKS.get("topics")().cases(world, 1)  # type: ignore[operator]


def test_topics_of_real_conversations(lantern) -> None:
    data = ROOT / "../shared/data"
    if not data.is_dir():
        pytest.skip("no shared data beside the repository")
    world = World.make(lantern.built.loaded.tokenizer, 600, data=data)
    (case,) = TASKS.get("topics")().cases(world, 1)  # type: ignore[operator]
    assert case.num_tokens <= 600
    assert "psychology of creativity" in lantern.built.loaded.tokenizer.decode(case.forced_ids)


def test_a_price_list_from_end_to_end(lantern, world, tmp_path) -> None:
    from pagoda.bench.kv_report import plot

    said: list[str] = []
    chosen = spell(["snapkv", "recent"], [0.25])
    found = price(lantern, world, chosen, ["recall", "agreement"], 6, model="lantern", with_speed=False,
                  progress=said.append)  # fmt: skip
    exact, snapkv, recent = found.prices
    assert said == ["exact", "snapkv(budget=0.25)", "recent(budget=0.25)"]
    assert exact.held_share == 1.0
    assert 0.15 < recent.held_share <= snapkv.held_share < 0.5
    assert recent.quality["recall"] < snapkv.quality["recall"] <= exact.quality["recall"] == 1.0
    assert 0.0 == exact.quality["kl"] < snapkv.quality["kl"] < recent.quality["kl"]
    assert sum(snapkv.heat.values()) > sum(recent.heat.values())
    table = markdown(found)
    assert table.count("\n") == 4
    assert "| `exact` | 100% | 100% | 100% | 0.000 | 100% |" in table
    plot(found, tmp_path / "prices.png")
    assert (tmp_path / "prices.png").read_bytes()[:4] == b"\x89PNG"


def test_front_and_losers() -> None:
    def one(kv: str, held: float, kl: float) -> Price:
        return Price(kv, kv, 0.5, held, quality={"kl": kl})

    prices = [one("exact", 1.0, 0.0), one("a", 0.5, 0.1), one("recent", 0.4, 0.3), one("random", 0.6, 0.2),
              one("b", 0.5, 0.25)]  # fmt: skip
    found = PriceList("m", 1, 1, prices, {"kl": False})
    assert [p.kv for p in front(found, "kl")] == ["recent", "a", "exact"]
    assert losers(found, "kl") == ["b"]
    assert markdown(found).endswith("- No better than `recent` or `random` at the same budget, by kl: `b`.")


def test_prices_are_added_to_those_of_the_page() -> None:
    """Rows that are there, those of controls too, are replaced in place, new ones come last; losers are of all."""

    def of(*parts: tuple[str, float]) -> PriceList:
        controls = [Price("exact", "exact", None, quality={"kl": 0.0})]
        parts = (("recent", 0.3), ("random", 0.3), *parts)
        methods = [Price(f"{kv}(budget=0.5)", kv, 0.5, 0.5, quality={"kl": x}) for kv, x in parts]
        return PriceList("m", 9, 2, controls + methods, {"kl": False})

    page = splice(
        "<!-- prices m -->\n<!-- end prices m -->\nrest", "prices m", markdown(of(("a", 0.4), ("b", 0.5), ("c", 0.1)))
    )
    late = of(("a", 0.2), ("c", 0.7), ("d", 0.6))
    whole = of(("a", 0.2), ("b", 0.5), ("c", 0.7), ("d", 0.6))
    late.prices[1].quality["kl"] = whole.prices[1].quality["kl"] = 0.15
    assert added(page, late) == splice(page, "prices m", markdown(whole))
    assert listed(added(page, late), "m").prices == whole.prices
    with pytest.raises(ConfigError, match="other columns; give the tasks that it was made with"):
        added(page, PriceList("m", 9, 2, [Price("exact", "exact", None, quality={"top1": 1.0})], {"top1": True}))
    with pytest.raises(ConfigError, match="no place for 'prices n'"):
        added(page, PriceList("n", 9, 2, late.prices, {"kl": False}))


def test_the_page_lists_every_method() -> None:
    page = (ROOT / "docs" / "kv-policies.md").read_text(encoding="utf-8")
    assert splice(page, "methods", methods_table()) == page, "run: make prices (or pagoda bench kv … --docs)"
    assert all(f"| `{name}` |" in page for name in POLICIES.names())
    with pytest.raises(ConfigError, match="no place for 'nothing'"):
        splice(page, "nothing", "")
