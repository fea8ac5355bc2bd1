"""The rows that a cell writes of each model it trained, by table; see `fedhash_sim.results`.

>>> model_tables(outcome, agreement.findings)["rounds.csv"][0]
('consortium', 1, 'site-0', 'ok', '', '1.386294', 3.0, '0.0417', '')
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedhash.privacy import spending
from fedhash.privacy.settings import NoPrivacySettings
from fedhash.rounds.coordinator import RoundRecord
from fedhash_sim.federation import Outcome
from fedhash_sim.results import SUM_FACTS

__all__ = ["model_tables"]


def model_tables(outcome: Outcome, findings: Sequence[str]) -> dict[str, list[Sequence[object]]]:
    """Table to its rows, from the third column on: before them stand method and seed."""
    federation = outcome.federation
    tables: dict[str, list[Sequence[object]]] = {
        name: [
            (federation.model_of, record.round_number, *row)
            for record in outcome.records
            for row in rows_of(record)
        ]
        for name, rows_of in _ROUND_TABLES.items()
    }
    if federation.settings.aggregation == "plain":
        tables["sums.csv"] = []  # they would be rows without any fact
    tables["privacy.csv"] = _privacy_rows(outcome)
    tables["margins.csv"] = [(federation.model_of, *row) for row in _margin_rows(outcome, findings)]
    return tables


def _site_rows(record: RoundRecord) -> list[Sequence[object]]:
    return [
        (
            site,
            status,
            record.failure or "",
            "" if record.mean_loss is None else f"{record.mean_loss:.6f}",
            record.weight,
            f"{record.seconds:.4f}",
            record.notes.get(site, ""),
        )
        for site, status in sorted(record.sites.items())
    ]


def _exchange_rows(record: RoundRecord) -> list[Sequence[object]]:
    return [
        (
            each.stage,
            each.site,
            each.outcome,
            f"{each.seconds:.4f}",
            each.request_bytes,
            each.reply_bytes,
        )
        for each in record.exchanges
    ]


def _sum_rows(record: RoundRecord) -> list[Sequence[object]]:
    """A failed round has the facts that were known when it failed."""
    facts = record.aggregation
    return [(record.failure or "", *(facts.get(name, "") for name in SUM_FACTS))]


def _privacy_rows(outcome: Outcome) -> list[Sequence[object]]:
    """What each site of a private federation has spent."""
    terms = outcome.federation.agreement.privacy
    if terms is None or isinstance(outcome.federation.settings.privacy, NoPrivacySettings):
        return []
    return [
        (
            site,
            terms.delta,
            f"{spent.own_noise:.6f}",
            f"{spent.shared_noise:.6f}",
            f"{spent.together:.6f}",
            terms.epsilon_cap,
            len(events),
            spent.trust,
        )
        for site, events in sorted(outcome.spent.items())
        for spent in [spending(events, terms.delta)]
    ]


def _margin_rows(outcome: Outcome, findings: Sequence[str]) -> list[Sequence[object]]:
    """Each finding after each step; NaN, for a finding that kept its margin, as an empty field."""
    rows: list[Sequence[object]] = []
    for entry in outcome.margin_steps:
        step = entry.step()
        figures = (step.slack, step.within_variance, step.between_variance)
        for k, finding in enumerate(findings):
            told = ["" if np.isnan(each[k]) else f"{each[k]:.6f}" for each in figures]
            mu, n = f"{entry.margins[k]:.6f}", f"{entry.patients[k]:.3f}"
            rows.append((entry.round_number, finding, mu, n, *told, f"{entry.drift:.6f}"))
    return rows


_ROUND_TABLES = {
    "rounds.csv": _site_rows,
    "exchanges.csv": _exchange_rows,
    "sums.csv": _sum_rows,
}
