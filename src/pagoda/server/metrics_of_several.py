"""``/metrics`` of a server: of several models one document, with ``model_name`` on all that is of one of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .roster import Place, Roster

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_OF_THE_SERVER = ("pagoda_memory_", "pagoda_tenant_requests", "pagoda_tenant_tokens")


async def scrape(roster: Roster, accept: str) -> tuple[bytes, str]:
    """The metrics now and their media type: OpenMetrics where ``accept`` asks for it."""
    if not roster.shares_budget:
        return await roster.first.metrics.scrape(accept)
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder

    for service in roster.services:
        await service.metrics.look()
    registry = CollectorRegistry()
    registry.register(_Joined(roster))  # type: ignore[arg-type]
    encode, media_type = choose_encoder(accept)
    return encode(registry), media_type


class _Joined:
    """Families of all models' metrics, each once."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for service in self._roster.services:
            for metric in service.metrics.collect():
                of_server = metric.name.startswith(_OF_THE_SERVER)
                if not of_server:
                    metric.samples = [
                        sample._replace(labels={"model_name": service.names[0]} | sample.labels)
                        for sample in metric.samples
                    ]
                if metric.name not in families:
                    families[metric.name] = metric
                elif not of_server:
                    families[metric.name].samples.extend(metric.samples)
        yield from families.values()
        yield from self._places()

    def _places(self) -> Iterator[Metric]:
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

        loaded = GaugeMetricFamily("pagoda_model_loaded", "1 while the model is in memory.", labels=["model_name"])
        loads = CounterMetricFamily("pagoda_model_loads", "Times that the model was loaded.", labels=["model_name"])
        for entry in self._roster.entries:
            loaded.add_metric([entry.name], int(self._roster.place_of(entry) is Place.LOADED))
            loads.add_metric([entry.name], entry.num_loads)
        yield loaded
        yield loads
