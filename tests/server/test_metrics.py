"""``/metrics``: what Prometheus reads is what happened, and the board in docs/grafana names nothing else."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pagoda.server.histogram import Buckets
from pagoda.server.keys import Keys

from .conftest import OPTIONS, Running, running

BOARDS = sorted((Path(__file__).parents[2] / "docs" / "grafana").glob("*.json"))


def samples(server: Running) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by name and labels."""
    text = server.http.get("/metrics").text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(found: dict, name: str, **labels: str) -> float:
    return sum(value for (sample, of), value in found.items() if sample == name and labels.items() <= dict(of).items())


def test_a_request_is_counted_everywhere(server: Running) -> None:
    before = samples(server)
    answer = server.post("/v1/completions", {"prompt": "Once upon a time", "max_tokens": 12, "ignore_eos": True}).json()
    after = samples(server)

    def grew(name: str, **labels: str) -> float:
        return total(after, name, **labels) - total(before, name, **labels)

    usage = answer["usage"]
    assert grew("vllm:request_success_total", finished_reason="length") == 1
    assert grew("pagoda_http_requests_total", endpoint="completions", status="200") == 1
    assert grew("vllm:prompt_tokens_total") == usage["prompt_tokens"]
    assert grew("vllm:generation_tokens_total") == 12
    assert grew("vllm:time_to_first_token_seconds_count") == 1
    assert grew("vllm:inter_token_latency_seconds_count") == 11
    assert grew("vllm:e2e_request_latency_seconds_count") == 1
    assert grew("vllm:request_generation_tokens_sum") == 12
    assert grew("vllm:request_prompt_tokens_sum") == usage["prompt_tokens"]
    assert grew("vllm:iteration_tokens_total_count") == 12
    assert 0 < grew("vllm:inter_token_latency_seconds_sum") < grew("vllm:e2e_request_latency_seconds_sum") + 1e-6
    assert total(after, "vllm:num_requests_running") == 0


def test_every_answer_of_a_prompt_is_counted(server: Running) -> None:
    before = samples(server)
    usage = server.post("/v1/completions", {"prompt": "A fox", "max_tokens": 5, "ignore_eos": True, "n": 3}).json()[
        "usage"
    ]
    name = "vllm:generation_tokens_total"
    assert total(samples(server), name) - total(before, name) == usage["completion_tokens"] == 15


def test_prefix_hits_are_tokens(server: Running) -> None:
    prompt = "A prompt that nobody else sends, long enough for several pages. " * 6
    ask = {"prompt": prompt, "max_tokens": 1}
    server.post("/v1/completions", ask)
    before = samples(server)
    cached = server.post("/v1/completions", ask).json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    after = samples(server)
    assert cached >= 48
    hits = total(after, "vllm:prefix_cache_hits_total") - total(before, "vllm:prefix_cache_hits_total")
    queries = total(after, "vllm:prefix_cache_queries_total") - total(before, "vllm:prefix_cache_queries_total")
    assert hits == cached
    assert queries >= hits


def test_the_ledger_is_told_account_by_account(server: Running) -> None:
    found, memory = samples(server), server.stats()["memory"]
    assert total(found, "pagoda_memory_budget_bytes") == memory["total_bytes"]
    for account in ("runtime", "weights", "kv", "activations", "grammars"):
        leased = total(found, "pagoda_memory_leased_bytes", account=account)
        assert leased == memory["accounts"][account]["leased_bytes"], account
    assert ("pagoda_memory_unaccounted_bytes", ()) in found
    assert total(found, "pagoda_kv_bytes", tier="device", state="capacity") > 0
    assert {dict(of).get("granularity") for name, of in found if name == "pagoda_kv_pages"} == {
        "sequence",
        "layer",
        "head",
    }


def test_the_disk_is_a_tier(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = server.service.metrics
    server.http.get("/metrics")
    assert ("pagoda_kv_pages_restored_total", ()) not in samples(server)
    disk = {"used_bytes": 5 << 20, "budget_bytes": 1 << 30, "num_restored": 7}

    async def watched(*, with_picture: bool = False) -> dict:
        return metrics._stats | {"disk": disk}

    monkeypatch.setattr(server.service.llm, "watched", watched)
    found = samples(server)
    assert total(found, "pagoda_kv_bytes", tier="disk", state="used") == 5 << 20
    assert total(found, "pagoda_kv_bytes", tier="disk", state="capacity") == 1 << 30
    assert total(found, "pagoda_kv_pages_restored_total") == 7


def test_offloaded_kv_is_a_tier(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = server.service.metrics
    server.http.get("/metrics")
    assert ("pagoda_kv_offload_pages_total", ()) not in samples(server)
    names = ("read_bytes", "written_bytes", "pages_asked", "hits", "wait_seconds", "num_errors")
    far = {"used_bytes": 3, "tier_bytes": 9} | {name: number for number, name in enumerate(names, 20)}

    async def watched(*, with_picture: bool = False) -> dict:
        return metrics._stats | {"kv": metrics._stats["kv"] | {"offload": far}}

    monkeypatch.setattr(server.service.llm, "watched", watched)
    found = samples(server)
    assert [total(found, "pagoda_kv_bytes", tier="offload", state=state) for state in ("used", "capacity")] == [3, 9]
    told = ("read_bytes", "written_bytes", "pages", "hits", "wait_seconds", "errors")
    assert [total(found, f"pagoda_kv_offload_{name}_total") for name in told] == list(range(20, 26))


def test_what_a_client_did_wrong_is_counted_as_such(server: Running) -> None:
    before = samples(server)
    assert server.post("/v1/completions", {"prompt": "x", "kv": "nonsense"}).status_code == 400
    after = samples(server)
    name = "pagoda_http_requests_total"
    assert total(after, name, status="400") == total(before, name, status="400") + 1
    assert total(after, "vllm:request_success_total") == total(before, "vllm:request_success_total")


def test_tenants_are_told_apart(serve) -> None:
    server = serve(keys=Keys({"ada": "correct-horse-battery", "bob": "another-horse-battery"}))
    headers = {"authorization": "Bearer correct-horse-battery"}
    usage = server.post(
        "/v1/completions", {"prompt": "hi", "max_tokens": 3, "ignore_eos": True}, headers=headers
    ).json()["usage"]
    found = samples(server)
    assert total(found, "pagoda_tenant_tokens_total", tenant="ada") == usage["total_tokens"]
    assert total(found, "pagoda_tenant_kv_bytes", tenant="ada") == 0
    assert "correct-horse" not in server.http.get("/metrics").text


def test_openmetrics_is_spoken_where_it_is_asked_for(server: Running) -> None:
    answer = server.http.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")
    assert server.http.get("/metrics").headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize("board", BOARDS, ids=lambda path: path.name)
def test_the_board_names_metrics_that_exist(server: Running, board: Path) -> None:
    queries = [
        target["expr"] for panel in json.loads(board.read_text())["panels"] for target in panel.get("targets", ())
    ]
    assert len(queries) > 12
    server.post("/v1/completions", {"prompt": "Once", "max_tokens": 1})  # whoever asks is told of
    names = {name for name, _ in samples(server)}
    for query in queries:
        for name in re.findall(r"(?:vllm:|pagoda_)[a-z0-9_]+", query):
            assert name in names, f"{name} in {query}"


def test_there_is_a_board() -> None:
    assert BOARDS


def test_buckets_count_as_prometheus_does() -> None:
    buckets = Buckets((1.0, 2.0))
    buckets.observe_all([0.5, 1.0, 1.5, 9.0])
    assert buckets.cumulative() == [("1.0", 2.0), ("2.0", 3.0), ("+Inf", 4.0)]
    assert buckets.sum == 12.0


def test_live_quality_is_exported() -> None:
    """``pagoda serve --shadow 1``: after a lossy request the server finds time for its exact twin."""
    from pagoda.engine.async_llm import AsyncLLM

    llm = AsyncLLM("lantern", **OPTIONS, shadow=1.0)
    with running(llm) as server:
        body = {"prompt": "Once upon a time there was a fox. " * 6, "max_tokens": 8, "ignore_eos": True}
        assert server.post("/v1/completions", body | {"kv": "recent(budget=8)"}).status_code == 200
        deadline = time.monotonic() + 30
        while total(found := samples(server), "pagoda_shadow_tokens_total") < 8 and time.monotonic() < deadline:
            time.sleep(0.05)
        server.call(llm.close())
    assert total(found, "pagoda_shadow_requests_total", kv="recent(budget=8)") == 1
    assert total(found, "pagoda_shadow_tokens_total", kv="recent(budget=8)") == 8
    assert 0 <= total(found, "pagoda_shadow_agreed_total", kv="recent(budget=8)") <= 8
    assert total(found, "pagoda_shadow_kl_sum_total", kv="recent(budget=8)") > 0
