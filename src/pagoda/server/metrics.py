"""Prometheus metrics: vLLM's names where the meaning is equal, Pagoda's own beside them.

Three sources: steps (``StepEnded``, in the engine's thread), requests (``RequestEnded``, in the server's), and the
engine's stats, which are asked for when somebody scrapes. What is not scraped costs next to nothing.
https://docs.vllm.ai/en/stable/usage/metrics/
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..core.types import FinishReason
from ..engine.counters import StepEnded
from .histogram import SECONDS, TOKENS, Buckets
from .jobs import RequestEnded

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from ..engine.outputs import RequestOutput
    from .service import Service

_HISTOGRAMS = {
    "vllm:time_to_first_token_seconds": ("From arrival to the first token.", SECONDS),
    "vllm:inter_token_latency_seconds": ("Between two tokens of one answer.", SECONDS),
    "vllm:request_time_per_output_token_seconds": ("Mean time of a request's tokens after the first.", SECONDS),
    "vllm:e2e_request_latency_seconds": ("From arrival to the last token.", SECONDS),
    "vllm:request_queue_time_seconds": ("From arrival to the first step.", SECONDS),
    "vllm:request_prefill_time_seconds": ("From the first step to the first token.", SECONDS),
    "vllm:request_decode_time_seconds": ("From the first to the last token.", SECONDS),
    "vllm:request_prompt_tokens": ("Prompt tokens of a request.", TOKENS),
    "vllm:request_generation_tokens": ("Tokens of a request's answers.", TOKENS),
    "vllm:iteration_tokens_total": ("Tokens of a step.", TOKENS),
    "pagoda_step_seconds": ("Duration of a step.", SECONDS),
}

_STATES = ("used", "leased")  # of the blocks of one KV format


class Metrics:
    """Subscribes when made; ``scrape`` gives the text."""

    def __init__(self, service: Service) -> None:
        from prometheus_client import CollectorRegistry

        self._service = service
        self._buckets = {name: Buckets(edges) for name, (_, edges) in _HISTOGRAMS.items()}
        self._finished: Counter[str] = Counter()
        self._answered: Counter[tuple[str, int]] = Counter()
        self._stats: dict[str, Any] = {}
        self._registry: CollectorRegistry = CollectorRegistry()
        self._registry.register(self)  # type: ignore[arg-type]
        service.llm.events.subscribe(StepEnded, self._on_step)
        service.events.subscribe(RequestEnded, self._on_request)

    async def scrape(self, accept: str) -> tuple[bytes, str]:
        """The metrics now and their media type: OpenMetrics where ``accept`` asks for it."""
        from prometheus_client.exposition import choose_encoder

        await self.look()
        encode, media_type = choose_encoder(accept)
        return encode(self._registry), media_type

    async def look(self) -> None:
        """Asks the engine for what ``collect`` will tell."""
        if self._service.llm.dead is None:
            self._stats = await self._service.llm.watched()

    # -- sources -----------------------------------------------------------------------------------------------------

    def _on_step(self, step: StepEnded) -> None:
        """In the engine's thread."""
        self._buckets["vllm:iteration_tokens_total"].observe(step.num_tokens)
        self._buckets["pagoda_step_seconds"].observe(step.seconds)
        self._buckets["vllm:inter_token_latency_seconds"].observe_all(step.token_gaps)

    def _on_request(self, ended: RequestEnded) -> None:
        """In the server's thread."""
        self._answered[ended.endpoint, ended.status] += 1
        for output in ended.outputs:
            self._finished.update(_reasons(output, ended.status))
            self._note_times(output)
        if not ended.outputs and ended.status >= 500:
            self._finished["error"] += 1

    def _note_times(self, output: RequestOutput) -> None:
        timing, num = output.timing, output.usage.completion_tokens
        self._buckets["vllm:request_prompt_tokens"].observe(output.usage.prompt_tokens)
        self._buckets["vllm:request_generation_tokens"].observe(num)
        longest = max((len(answer.token_ids) for answer in output.outputs), default=0)
        decode = _between(timing.first_token, timing.finished)
        for name, seconds in (
            ("vllm:time_to_first_token_seconds", _between(timing.arrival, timing.first_token)),
            ("vllm:e2e_request_latency_seconds", _between(timing.arrival, timing.finished)),
            ("vllm:request_queue_time_seconds", _between(timing.arrival, timing.first_scheduled)),
            ("vllm:request_prefill_time_seconds", _between(timing.first_scheduled, timing.first_token)),
            ("vllm:request_decode_time_seconds", decode),
            (
                "vllm:request_time_per_output_token_seconds",
                None if decode is None or longest < 2 else decode / (longest - 1),
            ),
        ):
            if seconds is not None:
                self._buckets[name].observe(seconds)

    # -- what the registry asks for ----------------------------------------------------------------------------------

    def describe(self) -> list[Metric]:
        """Nothing is known before the first scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every metric with its samples."""
        from prometheus_client.metrics_core import HistogramMetricFamily

        model = [self._service.names[0]]
        for name, (text, _) in _HISTOGRAMS.items():
            family = HistogramMetricFamily(name, text, labels=["model_name"])
            family.add_metric(model, self._buckets[name].cumulative(), self._buckets[name].sum)
            yield family
        yield _counter("vllm:request_success", "Answers by how they ended.", ["model_name", "finished_reason"],
                       {(*model, reason): self._finished[reason] for reason in FinishReason})  # fmt: skip
        answered = {(endpoint, str(status)): num for (endpoint, status), num in sorted(self._answered.items())}
        yield _counter("pagoda_http_requests", "Requests by endpoint and status.", ["endpoint", "status"], answered)
        yield from self._tenants()
        if self._stats:
            yield from _from_stats(self._stats, model)

    def _tenants(self) -> Iterator[Metric]:
        tenants = self._service.gate.tenants
        held: Counter[str] = Counter()
        by_request = self._stats.get("held_bytes_by_request", {})
        for job in self._service.jobs:
            held[job.caller.name] += sum(by_request.get(request.request_id, 0) for request in job.requests)
        label = ["tenant"]
        yield _gauge("pagoda_tenant_kv_bytes", "KV that a key's requests hold now.", label,
                     {(name,): held[name] for name in tenants})  # fmt: skip
        yield _gauge("pagoda_tenant_requests", "Requests of a key under way.", label,
                     {(name,): tenant.running for name, tenant in tenants.items()})  # fmt: skip
        yield _counter("pagoda_tenant_tokens", "Prompt and answer tokens of a key.", label,
                       {(name,): tenant.spent_tokens for name, tenant in tenants.items()})  # fmt: skip


def _from_stats(stats: dict[str, Any], model: list[str]) -> Iterator[Metric]:
    kv, queue, steps, prefix = stats["kv"], stats["queue"], stats["steps"], stats["kv"]["prefix"]
    capacity = kv["max_blocks"] * kv["block_bytes"]
    page_tokens = stats["model"]["page_size"]
    of_model = ["model_name"]
    gauges = {
        "vllm:num_requests_running": ("Sequences that run.", queue["running"]),
        "vllm:num_requests_waiting": ("Sequences that wait.", queue["waiting"]),
        "pagoda_asleep": ("1 while weights and KV are given back.", int(stats["asleep"])),
        "vllm:kv_cache_usage_perc": ("Share of the KV capacity in use, 1 is all.", kv["used_bytes"] / max(1, capacity)),
    }
    counters = {
        "vllm:num_preemptions": ("Sequences that gave their pages up for others.", queue["preemptions"]),
        "vllm:prompt_tokens": ("Prompt tokens of requests that began to run.", steps["prompt_tokens"]),
        "vllm:generation_tokens": ("Tokens sampled.", steps["tokens_sampled"]),
        "vllm:prefix_cache_queries": (
            "Prompt tokens looked for in the prefix cache, whole pages.",
            (prefix["num_hit_pages"] + prefix["num_missed_pages"]) * page_tokens,
        ),
        "vllm:prefix_cache_hits": ("Those of them that were found.", prefix["num_hit_pages"] * page_tokens),
        "pagoda_slots_dropped": ("Slots that KV policies gave back.", steps["slots_dropped"]),
        "pagoda_pages_copied": ("Pages copied because they were shared.", kv["num_copied_pages"]),
        "pagoda_structured_masks": ("Masks computed for structured output.", stats["structured"]["masks"]),
    }
    for name, (text, value) in gauges.items():
        yield _gauge(name, text, of_model, {tuple(model): value})
    for name, (text, value) in counters.items():
        yield _counter(name, text, of_model, {tuple(model): value})
    yield from _shadow(stats["shadow"]["policies"])
    yield from _memory(stats["memory"])
    yield from _kv_bytes(stats, capacity)


def _shadow(policies: dict[str, Any]) -> Iterator[Metric]:
    """Live quality: nothing until a shadow has run."""
    for key, text in (
        ("requests", "Lossy requests that were run exactly as well."),
        ("tokens", "Tokens of them that were compared."),
        ("agreed", "Those of them at which both first choices were the same."),
        ("kl_sum", "KL divergence from the exact to the lossy distribution, in nats, added up over tokens."),
    ):
        values = {(name,): found[key] for name, found in policies.items()}
        yield _counter(f"pagoda_shadow_{key}", text, ["kv"], values)


def _memory(memory: dict[str, Any]) -> Iterator[Metric]:
    accounts, label = memory["accounts"], ["account"]
    yield _gauge("pagoda_memory_leased_bytes", "Bytes that the ledger's accounts may touch.", label,
                 {(name,): account["leased_bytes"] for name, account in accounts.items()})  # fmt: skip
    yield _gauge("pagoda_memory_resident_bytes", "Bytes of them that are in memory.", label,
                 {(name,): account["resident_bytes"] for name, account in accounts.items()})  # fmt: skip
    for name, text, key in (
        ("pagoda_memory_budget_bytes", "The stated budget.", "total_bytes"),
        ("pagoda_memory_free_bytes", "Bytes of it that no lease holds.", "free_bytes"),
        ("pagoda_memory_rss_bytes", "Resident bytes of the process, as the kernel counts them.", "rss_bytes"),
        ("pagoda_memory_unaccounted_bytes", "Resident bytes that no account explains.", "unaccounted_bytes"),
    ):
        yield _gauge(name, text, [], {(): memory[key]})
    group = memory["cgroup"] or {}
    for name, text, key in (
        ("pagoda_cgroup_limit_bytes", "The limit of the tightest memory cgroup above the process.", "limit_bytes"),
        ("pagoda_cgroup_bytes", "What that group holds, page cache included.", "current_bytes"),
        ("pagoda_cgroup_peak_bytes", "The most that it has held.", "peak_bytes"),
    ):
        if group.get(key) is not None:
            yield _gauge(name, text, [], {(): group[key]})


def _offload(far: dict[str, Any]) -> Iterator[Metric]:
    for name, text, key in (
        ("pagoda_kv_offload_read_bytes", "Bytes that steps read from the tier of offloaded KV.", "read_bytes"),
        ("pagoda_kv_offload_written_bytes", "Bytes that they wrote there.", "written_bytes"),
        ("pagoda_kv_offload_pages", "Pages that selections asked for.", "pages_asked"),
        ("pagoda_kv_offload_hits", "Those of them that were in the window.", "hits"),
        ("pagoda_kv_offload_wait_seconds", "Time that steps stood still for a buffer.", "wait_seconds"),
        ("pagoda_kv_offload_errors", "Runs that could not be read or written.", "num_errors"),
    ):
        yield _counter(name, text, [], {(): far[key]})


def _kv_bytes(stats: dict[str, Any], capacity: int) -> Iterator[Metric]:
    kv = stats["kv"]
    states = {
        "used": kv["used_bytes"],
        "idle_prefix": kv["idle_prefix_bytes"],
        "touched": kv["touched_bytes"],
        "capacity": capacity,
    }
    tiers = {("device", state): value for state, value in states.items()}
    disk = stats["disk"]
    if disk is not None:
        for tier, prefix in (("disk", ""), ("host", "host_")):
            if f"{prefix}used_bytes" in disk:
                tiers[tier, "used"] = disk[f"{prefix}used_bytes"]
                tiers[tier, "capacity"] = disk[f"{prefix}budget_bytes"]
        yield _counter("pagoda_kv_pages_restored", "Pages of tokens that came from the disk instead of a computation.",
                       [], {(): disk["num_restored"]})  # fmt: skip
    far = kv["offload"]
    if far is not None:
        tiers["offload", "used"], tiers["offload", "capacity"] = far["used_bytes"], far["tier_bytes"]
        yield from _offload(far)
    yield _gauge("pagoda_kv_bytes", "KV bytes of a tier. used: pages with an owner, idle_prefix: those of them that "
                 "only the prefix cache holds, touched: resident, capacity: the most that may be.", ["tier", "state"],
                 tiers)  # fmt: skip
    formats = {(name, state): one[f"{state}_bytes"] for name, one in kv["formats"].items() for state in _STATES}
    yield _gauge("pagoda_kv_format_bytes", "KV bytes by the format of the pages. used: pages with an owner, leased: "
                 "blocks that the format has, in use or not.", ["format", "state"],
                 formats)  # fmt: skip
    yield _gauge("pagoda_kv_pages", "Pages that live sequences hold, by the granularity of their tables; shared pages "
                 "count for each.", ["granularity"],
                 {(name,): pages for name, pages in stats["pages_by_granularity"].items()})  # fmt: skip


def _gauge(name: str, text: str, labels: list[str], values: dict[Any, float]) -> Metric:
    from prometheus_client.metrics_core import GaugeMetricFamily

    family = GaugeMetricFamily(name, text, labels=labels)
    for label_values, value in values.items():
        family.add_metric(list(label_values), value)
    return family


def _counter(name: str, text: str, labels: list[str], values: dict[Any, float]) -> Metric:
    from prometheus_client.metrics_core import CounterMetricFamily

    family = CounterMetricFamily(name, text, labels=labels)
    for label_values, value in values.items():
        family.add_metric(list(label_values), value)
    return family


def _reasons(output: RequestOutput, status: int) -> list[str]:
    """How the answers ended; one that had not is an abort where the client left, else an error."""
    left = "abort" if status in (408, 499) else "error"
    return [str(answer.finish_reason or left) for answer in output.outputs]


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else max(0.0, end - start)
