"""What /metrics tells, in Prometheus's text format. Each server has its own registry, so that several fit a process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

if TYPE_CHECKING:
    from min_llm.infer.options import Statistics

CONTENT_TYPE = exposition.CONTENT_TYPE_LATEST
FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)  # seconds
BETWEEN = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)

GAUGES = {
    "waiting": "Requests that the engine has not begun",
    "running": "Requests that the engine works on",
    "pages_total": "Pages of the key-value pool",
    "pages_free": "Pages that hold nothing",
    "pages_cached": "Pages that only the prefix cache holds",
    "pages_used": "Pages of running requests",
}
COUNTERS = {
    "compiles": "Programs compiled",
    "steps": "Device steps",
    "prompt_tokens": "Tokens of prompts",
    "generated_tokens": "Tokens generated",
    "preemptions": "Requests put back to free pages",
    "prefix_hits": "Tokens of prompts found in the prefix cache",
}


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"min_llm_{name}_seconds", text, buckets=buckets, registry=self.registry)

        self.first_token = histogram("time_to_first_token", "From a request to its first token", FIRST)
        self.between_tokens = histogram("inter_token_latency", "Between two tokens of a choice", BETWEEN)
        self.duration = histogram("request_duration", "Whole requests over HTTP", FIRST)
        self.requests = Counter(
            "min_llm_requests", "Requests over HTTP", ("path", "status"), registry=self.registry
        )

    def watch(self, statistics: Callable[[], Statistics], queued: Callable[[], int]) -> None:
        """Tell the engine's numbers too, as they are when somebody asks."""
        self.registry.register(_EngineNumbers(statistics, queued))

    def text(self) -> bytes:
        return exposition.generate_latest(self.registry)


class _EngineNumbers:
    def __init__(self, statistics: Callable[[], Statistics], queued: Callable[[], int]) -> None:
        self.statistics, self.queued = statistics, queued

    def collect(self) -> Iterable[Any]:
        now = self.statistics()
        yield GaugeMetricFamily("min_llm_queued", "Choices without a first token", self.queued())
        for name, text in GAUGES.items():
            yield GaugeMetricFamily(f"min_llm_{name}", text, getattr(now, name))
        for name, text in COUNTERS.items():
            yield CounterMetricFamily(f"min_llm_{name}", text, getattr(now, name))
