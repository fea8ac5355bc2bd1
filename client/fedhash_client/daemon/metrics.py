"""The daemon's counts as metrics in Prometheus' form, for `/metrics`.

>>> registry.register(ServiceMetrics(statuses, lambda: {"train_reply": 3}))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from fedhash_process.service import Status

__all__ = ["ServiceMetrics"]


class ServiceMetrics:
    """The numbers of all services as metrics, and answers by kind.

    Args:
        statuses: Service name to its status.
        answers: Kind of answer, or refusal with its reason, to how many.
    """

    def __init__(
        self, statuses: Callable[[], dict[str, Status]], answers: Callable[[], dict[str, int]]
    ) -> None:
        self._statuses = statuses
        self._answers = answers

    def collect(self) -> Iterator[Metric]:
        """For Prometheus' registry."""
        facts = GaugeMetricFamily(
            "fedhash_service", "What a service tells of itself.", labels=["service", "fact"]
        )
        for service, status in self._statuses().items():
            for fact, value in status.items():
                if isinstance(value, int | float):  # a truth value is 0 or 1
                    facts.add_metric([service, fact], float(value))
        yield facts
        answers = CounterMetricFamily(
            "fedhash_answers", "Answers to the coordinator, by kind.", labels=["kind"]
        )
        for kind, count in self._answers().items():
            answers.add_metric([kind], count)
        yield answers
