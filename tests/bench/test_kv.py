"""The price list: what is spelled, that forced logits are the engine's own, that tables hold what was measured."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from pagoda.bench.forced import Case, ForcedEngine
from pagoda.bench.kv import Price, PriceList, price
from pagoda.bench.kv_judge import SPREAD, control_at, front, interval, standings
from pagoda.bench.kv_methods import methods_table, methods_text
from pagoda.bench.kv_names import spell
from pagoda.bench.kv_page import accept_exact, all_listed, listed, read_page, with_prices
from pagoda.bench.kv_report import markdown, splice
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


def test_what_is_judged_was_not_learned_from(lantern, tmp_path) -> None:
    """Of one file, of several of which one says a story twice and another says it again, and of made-up text."""
    encode = lantern.built.loaded.tokenizer
    stories = [
        f"Story {n} is about the number {n}. " + f"It is said {n} times, {n} and no more. " * 9 for n in range(12)
    ]
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("\n".join(stories[:5] + stories[:2]))
    two.write_text("\n\n".join(stories[4:]))
    for text in ([one], [two, one], [one, two], []):
        judged, learned = (World.make(encode, 64, text=text, learned=part) for part in (False, True))
        assert judged.texts
        assert learned.texts
        assert not set(judged.texts) & set(learned.texts)
        assert len(set(judged.texts)) == len(judged.texts)
    both = World.make(encode, 64, text=[one, two])
    assert (len(both.texts), len(World.make(encode, 64, text=[one, two], learned=True).texts)) == (9, 3)
    assert len(both.filler) == 7 * 10, "of the first file, as it is"
    one.write_text(stories[0])
    with pytest.raises(ConfigError, match="has one paragraph of 200 characters; give two or more"):
        World.make(encode, 64, text=[one])


def test_passages_have_no_token_in_common(lantern, world) -> None:
    whole = [token for text in world.texts for token in text]
    numbered = replace(world, texts=(tuple(range(len(whole))),))
    for count in (1, 7, 10_000):
        found = numbered.passages(count, 319)
        assert len(found) == min(count, len(whole) // 319)
        assert len({token for passage in found for token in passage}) == 319 * len(found)
        assert found[-1][-1] > len(whole) * (0 if count == 1 else 0.8), "spread over the text"
    with pytest.raises(ConfigError, match="passages of 319 tokens do not fit into the 9 tokens .* a longer --text"):
        replace(world, texts=((1,) * 9,)).passages(2, 319)
    few = replace(world, texts=(tuple(whole[: 2 * 320]),))
    found = price(lantern, few, [], ["perplexity", "agreement", "counting"], 3, model="lantern", with_speed=False)
    assert found.fewer == {"perplexity": 2, "kl": 2, "top1": 2}
    assert (found.cases_of("kl"), found.cases_of("counting")) == (2, 3)
    page = with_prices("<!-- prices lantern -->\n<!-- end prices lantern -->", found)
    assert "\n3 cases a task (2 of perplexity, kl, top1), 320 tokens each.\n" in page
    again = listed(page, "lantern")
    assert (again.fewer, again.count, again.length) == (found.fewer, 3, 320)


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
    from pagoda.bench.kv_report import plot, plot_heat

    said: list[str] = []
    chosen = spell(["snapkv", "recent", "quest"], [0.25])
    found = price(lantern, world, chosen, ["recall", "agreement"], 6, model="lantern", with_speed=False,
                  progress=said.append)  # fmt: skip
    exact, snapkv, recent, quest = found.prices
    assert said == ["exact", "snapkv(budget=0.25)", "recent(budget=0.25)", "quest"]
    assert exact.held_share == exact.read_share == quest.held_share == 1.0
    assert (snapkv.read_share, recent.read_share) == (snapkv.held_share, recent.held_share)
    assert 0.2 < quest.read_share < 0.45  # a quarter of the full pages, and the one under way
    assert exact.noted_share == snapkv.noted_share == 0.0 < quest.noted_share < 0.2
    assert exact.looked_share == snapkv.looked_share == 0.0
    assert 0.02 < quest.looked_share <= 1 / 32  # two corners in bfloat16, of 16 keys and values in float32
    assert 0.15 < recent.held_share <= snapkv.held_share < 0.5
    assert recent.quality["recall"] < snapkv.quality["recall"] <= exact.quality["recall"] == 1.0
    assert 0.0 == exact.quality["kl"] < snapkv.quality["kl"] < recent.quality["kl"]
    assert sum(snapkv.heat.values()) > sum(recent.heat.values())
    table = markdown(found)
    assert "| `exact` | 100% | 0% | 100% | 100% | 0% | 100% | 0.000 | 100% | - | - | - |" in table
    assert plot(found, tmp_path / "prices.png")
    assert plot_heat(found, tmp_path / "heat.png")
    assert all((tmp_path / name).read_bytes()[:4] == b"\x89PNG" for name in ("prices.png", "heat.png"))
    helpless = replace(found, left_out=dict.fromkeys(exact.quality, "exact itself scores 0.00"))
    assert not plot(helpless, tmp_path / "none.png")
    assert not plot_heat(helpless, tmp_path / "none.png")


def test_speeds_are_measured_in_turns_and_notes_with_them(lantern, world, monkeypatch) -> None:
    """Without quality: what a table says of notes and marks is as the engine has it, of all methods in its own way."""
    from pagoda.bench import turns

    monkeypatch.setattr(turns, "FEWEST", 2)
    monkeypatch.setattr(turns, "MOST", 2)
    chosen = [(kv, kv, None) for kv in ("sparq", "lserve", "h2o(budget=0.25)")]
    found = price(lantern, world, chosen, [], 1, model="lantern")
    exact, sparq, lserve, h2o = found.prices
    assert exact.noted_share == exact.looked_share == h2o.looked_share == 0.0 < h2o.noted_share < 0.05
    assert 0.1 < sparq.noted_share < 0.2  # a byte for two of the keys' numbers, and room to grow
    assert 0.6 < sparq.looked_share / (sparq.noted_share * 17 / 65) <= 1.0  # nothing is looked at of room to grow
    assert 0.02 < lserve.looked_share < lserve.noted_share / 4
    for one in found.prices:
        assert one.held_share is None
        assert 0.01 < one.prefill_speed < 100
        assert 0.01 < one.decode_speed < 100
    assert exact.policy_share == 0.0 < h2o.policy_share < 1.0


def test_a_step_looks_at_no_more_than_was_noted() -> None:
    """Of every selection; sparq at its channels of all."""
    selections = {name: POLICIES.get(name)() for name in POLICIES.names() if POLICIES.get(name).stage == "selection"}
    assert len(selections) > 8
    assert all(0 <= one.looked_bytes(16, 64) <= one.mark_bytes(16, 64) for one in selections.values())
    assert selections["sparq"].looked_bytes(16, 64) == 16 * (16 / 2 + 1)
    assert selections["sparq"].looked_bytes(16, 8) == 16 * (8 / 2 + 1)
    assert selections["longcache"].looked_bytes(16, 64) == 16 * (64 + 1)


def of_kl(kv: str, share: float, kl: float, **more: float) -> Price:
    return Price(kv, kv.partition("(")[0], None, share, 0.0, share, share, 0.0, {"kl": kl}, **more)


def behind(found: PriceList, metric: str) -> list[str]:
    return [kv for kv, place in standings(found, metric).items() if place < 0]


def test_front_and_losers() -> None:
    """A method is held to what controls reach with as many bytes: between two of their budgets, or theirs and exact."""
    prices = [of_kl("exact", 1.0, 0.0), of_kl("a", 0.5, 0.1), of_kl("recent(budget=0.4)", 0.4, 0.3),
              of_kl("random(budget=0.6)", 0.6, 0.2), of_kl("b", 0.5, 0.25), of_kl("recent(budget=0.2)", 0.2, 0.4),
              of_kl("c", 0.3, 0.36), of_kl("d", 0.3, 0.34), of_kl("e", 0.1, 0.39)]  # fmt: skip
    found = PriceList("m", 1, 10**6, prices, {"kl": False})
    assert [p.kv for p in front(found, "kl")] == ["e", "d", "recent(budget=0.4)", "a", "exact"]
    assert control_at(found, "kl", 0.5, ["recent"]) == pytest.approx(0.25)
    assert control_at(found, "kl", 0.5, ["random"]) == 0.2
    assert control_at(found, "kl", 0.9, ["recent", "random"]) == pytest.approx(0.05)
    assert control_at(found, "kl", 0.3, ["nobody"]) is None
    found.prices[3].read_share = 0.3  # random, with a KL of 0.2
    assert behind(found, "kl") == ["b", "c", "d", "e"]
    found.prices.pop(3)
    assert standings(found, "kl") == {"a": 1, "b": 0, "c": -1, "d": 1, "e": 1}, "b is on the line"
    found.prices[6].looked_share = 0.25  # d: what it reads to choose is read, too
    assert behind(found, "kl") == ["c", "d"]
    found.prices[6].looked_share = 0.0
    assert markdown(found).endswith(
        "- Worse than `recent` or `random` with as many bytes read, by kl: `c`.\n"
        "- As good as `recent` or `random` with as many bytes read, by kl: `b`."
    )


def test_a_difference_that_other_cases_might_turn_is_none() -> None:
    """Ten facts of 36 beside nine; thirty are better, and ten of 36 where controls find 33 are worse."""

    def place(value: float, bar: float, count: int = 36, metric: str = "recall") -> int:
        prices = [Price(kv, kv, None, share, 0.0, share, share, 0.0, {metric: x}) for kv, share, x in
                  (("exact", 1.0, 1.0), ("recent", 0.3, bar), ("a", 0.3, value))]  # fmt: skip
        found = PriceList("m", 9, count, prices, {metric: metric == "recall"})
        assert standings(found, metric).keys() == {"a"}
        return standings(found, metric)["a"]

    assert interval("recall", 10 / 36, 36) == pytest.approx((0.158, 0.440), abs=1e-3)  # Wilson, by hand
    assert interval("recall", 1.0, 36) == pytest.approx((0.904, 1.0), abs=1e-3)
    assert [place(x / 36, 9 / 36) for x in (9, 10, 30)] == [0, 0, 1]
    assert place(10 / 36, 33 / 36) == -1
    assert place(10 / 36, 9 / 36, 100_000) == 1
    for metric, near, far in (("kl", 0.99, 2.0), ("perplexity", 0.999, 1.2)):
        assert [place(5 * x, 5.0, 36, metric) for x in (near, 1 / near, 1 / far, far)] == [0, 0, 1, -1]
        assert interval(metric, 5.0, 4)[1] == pytest.approx(5 * math.exp(SPREAD[metric] / 2))
    found = PriceList("m", 9, 10**6, [], {}, fewer={"recall": 36})
    assert (found.cases_of("recall"), found.cases_of("kl")) == (36, 10**6)


def test_other_models_are_in_an_entry_where_a_method_does_not_win() -> None:
    """The first model's rows are told in full."""

    def of(model: str, h2o: float, snapkv: float) -> PriceList:
        said = (("exact", 0.0, 6.0), ("recent", 0.4, 10.0), ("h2o", h2o, 10.01), ("snapkv", snapkv, 6.0))
        rows = [of_kl(kv, 0.3 if kl else 1.0, kl) for kv, kl, _ in (*said, ("h2o+ada", 0.41, 20.0))]
        for one, (_, _, perplexity) in zip(rows, (*said, ("", 0.41, 20.0)), strict=True):
            one.quality["perplexity"] = perplexity
        return PriceList(model, 9, 36, rows, {"kl": False, "perplexity": False})

    lists = [of("first", 0.1, 0.1), of("other", 9.0, 0.1), of("third", 0.1, 0.1)]
    page = "".join(
        f"<!-- prices {one.model} -->\n<!-- end prices {one.model} -->\n" for one in [*lists, of("none", 1, 1)]
    )
    for one in lists:
        page = with_prices(page, one)
    assert [one.model for one in all_listed(page)] == ["first", "other", "third"]
    entries = {part.partition("\n")[0]: part for part in methods_text(all_listed(page)).split("### ")}
    assert entries["h2o"].rstrip().split("\n")[-4:] == [
        "- first: `h2o` holds 30% of the bytes, KL 0.100; beats the controls at equal bytes by KL, is as good by "
        "perplexity.",
        "- first: `h2o+ada` holds 30% of the bytes, KL 0.410; is as good by KL, **is worse** by perplexity.",
        "- other, beside the controls at equal bytes: `h2o` is as good by perplexity and **is worse** by KL; "
        "`h2o+ada` is as good by KL and **is worse** by perplexity.",
        "- third, beside the controls at equal bytes: `h2o` is as good by perplexity; "
        "`h2o+ada` is as good by KL and **is worse** by perplexity.",
    ]
    assert "third" not in entries["snapkv"]
    assert entries["snapkv"].rstrip().endswith("beats the controls at equal bytes by KL, perplexity.")
    assert entries["quest"].rstrip().endswith("- first: not priced yet.")
    assert "- first" not in methods_text([])


def test_prices_are_put_into_a_page(tmp_path) -> None:
    """Rows that are there, those of controls too, are replaced in place, new ones come last; losers are of all."""

    def of(*parts: tuple[str, float], speed: float | None = 2.0) -> PriceList:
        controls = [of_kl("exact", 1.0, 0.0, decode_speed=1.0)]
        parts = (("recent", 0.3), ("random", 0.3), *parts)
        methods = [of_kl(f"{kv}(budget=0.5)", 0.5, x, decode_speed=speed) for kv, x in parts]
        for one in methods:
            one.budget = 0.5
        return PriceList("m", 9, 2, controls + methods, {"kl": False}, {"topics": "why (not)"}, {"z": "not for it"})

    page = with_prices("<!-- prices m -->\n<!-- end prices m -->\nrest", of(("a", 0.4), ("b", 0.5), ("c", 0.1)))
    assert page.endswith("\nrest")
    assert page.startswith("<!-- prices m -->\n2 cases a task, 9 tokens each.\n\n")
    assert "| kv | KV held | noted | peak | KV read | marks read | kl | prefill | decode |" in page
    late, whole = of(("a", 0.2), ("c", 0.7), ("d", 0.6)), of(("a", 0.2), ("b", 0.5), ("c", 0.7), ("d", 0.6))
    late.prices[1].quality["kl"] = whole.prices[1].quality["kl"] = 0.15
    both = with_prices(page, late, add=True)
    assert both == with_prices(page, whole)
    assert listed(both, "m").prices == whole.prices
    assert (listed(both, "m").left_out, listed(both, "m").not_priced) == (whole.left_out, whole.not_priced)
    slow = of(("a", 0.9), speed=None)
    assert [(p.quality["kl"], p.decode_speed) for p in listed(with_prices(both, slow), "m").prices[1:]] == [
        (0.3, 2.0), (0.3, 2.0), (0.9, 2.0)
    ]  # fmt: skip
    fast = PriceList("m", 0, 0, [Price(p.kv, p.method, p.budget, decode_speed=7.0) for p in late.prices], {})
    fast.prices[1].noisy, fast.prices[1].noted_share, fast.prices[1].looked_share = ["decode"], 0.08, 0.04
    again = listed(with_prices(both, fast), "m")
    assert [p.noisy for p in again.prices[:3]] == [[], ["decode"], []]
    assert [(p.noted_share, p.looked_share) for p in again.prices[:3]] == [(0.0, 0.0), (0.08, 0.04), (0.0, 0.0)]
    assert "| 8% | 50% | 50% | 4% | 0.150 | - | ~7.00x | - |" in with_prices(both, fast)
    assert listed(with_prices(with_prices(both, fast), slow), "m").prices[1].noisy == ["decode"], (
        "with the speed it is of"
    )
    assert [p.decode_speed for p in again.prices] == [7.0, 7.0, 7.0, 7.0, 2.0, 7.0, 7.0]
    assert (again.count, again.prices[1].quality) == (2, {"kl": 0.15})
    now = both
    for day, kv, others in (
        ("Monday", None, ""),
        ("Tuesday", "a", "Monday"),
        ("Friday", "c", "Tuesday; Monday"),
        ("Friday", "a", "Tuesday; Monday"),
        ("May", None, ""),
    ):
        told = f"{day} (some rows: {others})" if others else day
        rows = [one for one in again.prices if kv is None or one.kv in ("exact", f"{kv}(budget=0.5)")]
        now = with_prices(now, replace(again, prices=rows, speeds_of=day), add=True)
        assert f"\n\nSpeeds: {told}.\n" in now
        assert listed(now, "m").speeds_of == told
    assert listed(with_prices(now, slow), "m").speeds_of == "May"
    fewer = replace(again, prices=again.prices[:-1], speeds_of="June")
    assert listed(with_prices(now, fewer), "m").speeds_of == "June", "the row that was of May is gone"
    fast.prices.append(Price("new", "new", None, decode_speed=1.0))
    with pytest.raises(ConfigError, match="no quality for new; leave --no-quality out"):
        with_prices(both, fast)
    with pytest.raises(ConfigError, match="has no column for top1; leave --tasks out"):
        with_prices(page, PriceList("m", 9, 2, [Price("exact", "exact", None, quality={"top1": 1.0})], {}), add=True)
    with pytest.raises(ConfigError, match="no place for 'prices n'"):
        with_prices(page, PriceList("n", 9, 2, late.prices, {"kl": False}))
    with pytest.raises(ConfigError, match="gone.md: cannot be read"):
        read_page(tmp_path / "gone.md", "m")


def rows_but(names: set[str], page: str) -> str:
    """The methods' table without these."""
    return "\n".join(line for line in page.split("\n") if not any(line.startswith(f"| [`{n}`](") for n in names))


def entries_but(names: set[str], text: str) -> str:
    """The methods' entries without these."""
    return "### ".join(part for part in text.split("### ") if part.partition("\n")[0] not in names)


def test_a_row_may_have_been_judged_by_fewer_tasks() -> None:
    """Its cells are empty, whoever has the others is judged among them, and a row that was there keeps what it had."""
    both = {"kl": 0.2, "recall": 0.5}
    prices = [Price(kv, kv, None, share, 0.0, share, share, 0.0, dict(both)) for kv, share in
              (("exact", 1.0), ("recent", 0.3), ("snapkv", 0.3))]  # fmt: skip
    page = with_prices(
        "<!-- prices m -->\n<!-- end prices m -->", PriceList("m", 9, 2, prices, {"kl": False, "recall": True})
    )
    added = [Price(kv, kv, None, 0.3, 0.0, 0.3, 0.3, 0.0, {"recall": 0.25}) for kv in ("exact", "snapkv", "quest")]
    page = with_prices(page, PriceList("m", 9, 2, added, {"recall": True}), add=True)
    assert "| `quest` | 30% | 0% | 30% | 30% | 0% | - | 25% | - | - | - |" in page
    found = listed(page, "m")
    assert {one.kv: one.quality for one in found.prices} == {
        "exact": both, "recent": both, "snapkv": {"kl": 0.2, "recall": 0.25}, "quest": {"recall": 0.25}
    }  # fmt: skip
    assert standings(found, "kl") == {"snapkv": 0}
    assert standings(found, "recall").keys() == {"snapkv", "quest"}
    assert [one.kv for one in front(found, "kl")] == ["recent"]


def test_what_other_tasks_said_stays() -> None:
    """In a list that some tasks are asked anew for; not where its cases are others. Bytes are the new ones, but for a
    row that is added among others.
    """
    both, place = {"kl": 0.2, "recall": 0.5}, "<!-- prices m -->\n<!-- end prices m -->"
    old = [Price(kv, kv, None, share, 0.0, share, share, 0.0, dict(both)) for kv, share in (("exact", 1.0), ("a", 0.3))]
    page = with_prices(
        place, PriceList("m", 9, 2, old, {"kl": False, "recall": True}, {"kl": "why"}, fewer={"kl": 1, "recall": 1})
    )
    new = [Price(kv, kv, None, 0.4, 0.1, 0.4, 0.4, 0.1, {"kl": 0.1}) for kv in ("exact", "a", "b")]
    found = listed(with_prices(page, PriceList("m", 9, 2, new, {"kl": False})), "m")
    assert [(p.held_share, p.quality) for p in found.prices] == [
        (0.4, {"kl": 0.1, "recall": 0.5}), (0.4, {"kl": 0.1, "recall": 0.5}), (0.4, {"kl": 0.1})
    ]  # fmt: skip
    assert (found.left_out, found.fewer) == ({}, {"recall": 1})
    added = listed(with_prices(page, PriceList("m", 9, 2, new, {"kl": False}), add=True), "m")
    assert [p.held_share for p in added.prices] == [1.0, 0.3, 0.4]
    others = listed(with_prices(page, PriceList("m", 9, 3, new, {"kl": False})), "m")
    assert [(p.held_share, p.quality) for p in others.prices] == [(0.4, {"kl": 0.1})] * 3
    assert others.fewer == {}


def test_exact_is_to_be_the_one_of_the_list() -> None:
    old = PriceList("m", 9, 4, [Price("exact", "exact", None, quality={"perplexity": 80.0, "recall": 0.75})], {})
    accept = accept_exact(old)
    accept(Price("exact", "exact", None, quality={"perplexity": 80.4, "recall": 1.0}))
    accept(Price("exact", "exact", None, quality={"recall": 0.75, "topics": 0.1}))
    for metric, value in (("perplexity", 82.0), ("recall", 0.25)):
        with pytest.raises(ConfigError, match=f"exact's {metric} is .* give the --text and --data"):
            accept(Price("exact", "exact", None, quality={metric: value}))


def test_the_pages_say_what_the_files_say() -> None:
    """Of every method that they have; one whose file is new may be missing, and is named."""
    page = (ROOT / "docs" / "kv-policies.md").read_text(encoding="utf-8")
    about = (ROOT / "docs" / "kv-methods.md").read_text(encoding="utf-8")
    missing = {name for name in POLICIES.names() if name != "exact" and f"### {name}\n" not in about}
    assert rows_but(missing, splice(page, "methods", methods_table())) == rows_but(missing, page), "run: make tables"
    text = splice(about, "methods", methods_text(all_listed(page)))
    assert entries_but(missing, text).rstrip() == about.rstrip(), "run: make tables"
    with pytest.raises(ConfigError, match="no place for 'nothing'"):
        splice(page, "nothing", "")
    if missing:
        pytest.skip(f"not in the docs yet: {', '.join(sorted(missing))}; run: make tables, or make price METHOD=…")
