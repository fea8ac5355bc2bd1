"""What a run costs: `costs.csv`, one row a trained model, and the report's tables of costs.

1. `planned_steps` are the optimiser steps of one round over all its sites; under a margin schedule
   sites that drift do fewer. `patients` are those that the sites train on.
2. Requests and bytes are of all rounds, failed ones too, and of requests that were not answered.
   The vectorised engine sends none.
3. `round_seconds` is the sum over the rounds, from the first request to the new model, without
   checkpoints and evaluations. Cells that train at once share the cores.
4. `evaluations` and their seconds are those of the process that finished the cell; what was
   evaluated before a crash is not evaluated again.
5. `peak_memory_bytes` is that of `fedhash_sim.peak_memory`. It is empty where the training was
   interrupted, where Flower's processes hold the sites, and where the system does not tell.

Times and memory differ from run to run, so none of them stands in `results.csv`.

    >>> training_costs(read_costs(Path("runs/demo")))[0]
    {'method': 'local', 'models': '5', ...}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from fedhash.learning.local_training import planned_steps
from fedhash_sim.federation import Outcome

__all__ = ["NOTHING", "cost_row", "site_costs", "stage_costs", "training_costs"]

NOTHING = "-"


def cost_row(
    outcome: Outcome, evaluation_seconds: Sequence[float], peak_memory_bytes: int | None
) -> tuple[object, ...]:
    """A row of `costs.csv`, from its fourth column on.

    Args:
        outcome: The trained model.
        evaluation_seconds: Of each evaluation that was done.
        peak_memory_bytes: While it was trained and evaluated; None where nobody knows.
    """
    federation, records = outcome.federation, outcome.records
    patients = [len(set(each.patient_ids)) for each in federation.studies.values()]
    learning = federation.settings.learning
    exchanges = [exchange for record in records for exchange in record.exchanges]
    return (
        len(patients),
        sum(patients),
        outcome.model.size,
        sum(planned_steps(each, learning) for each in patients) if records else 0,
        len(records),
        sum(record.failure is not None for record in records),
        f"{sum(record.seconds for record in records):.4f}",
        len(exchanges),
        sum(each.request_bytes for each in exchanges),
        sum(each.reply_bytes for each in exchanges),
        len(evaluation_seconds),
        f"{sum(evaluation_seconds):.4f}",
        "" if peak_memory_bytes is None else peak_memory_bytes,
    )


def training_costs(costs: pd.DataFrame) -> list[dict[str, str]]:
    """A method's costs over its models and seeds; means, but failures and the largest peak."""
    rows = []
    for method, cell in costs.groupby("method", sort=False):
        rounds, evaluations = cell["rounds"].sum(), cell["evaluations"].sum()
        site_rounds = (cell["rounds"] * cell["site_count"]).sum()
        asked = site_rounds if cell["requests"].sum() else 0
        rows.append(
            {
                "method": str(method),
                "models": str(len(cell)),
                "sites": f"{cell['site_count'].mean():g}",
                "parameters": f"{cell['parameters'].iloc[0]:,}",
                "rounds": str(rounds),
                "failed": str(cell["failed_rounds"].sum()),
                "s a round": _share(cell["round_seconds"].sum(), rounds, ".3f"),
                "local steps": _share(
                    (cell["planned_steps"] * cell["rounds"]).sum(), site_rounds, ".1f"
                ),
                "requests": _share(cell["requests"].sum(), asked, ".1f"),
                "to the site, kB": _share(cell["request_bytes"].sum() / 1e3, asked, ",.1f"),
                "from the site, kB": _share(cell["reply_bytes"].sum() / 1e3, asked, ",.1f"),
                "s an evaluation": _share(cell["evaluation_seconds"].sum(), evaluations, ".3f"),
                "peak memory, MB": NOTHING
                if cell["peak_memory_bytes"].isna().all()
                else f"{cell['peak_memory_bytes'].max() / 1e6:,.0f}",
            }
        )
    return rows


def _share(total: float, parts: int, form: str) -> str:
    return format(total / parts, form) if parts else NOTHING


def stage_costs(exchanges: pd.DataFrame) -> list[dict[str, str]]:
    """What a stage costs a site, by method: answers, failures, bytes and seconds."""
    return [
        {
            "method": str(method),
            "stage": str(stage),
            "requests": f"{len(cell):,}",
            "replies": f"{(cell['reply_bytes'] > 0).sum():,}",
            **_costs(cell),
        }
        for (method, stage), cell in exchanges.groupby(["method", "stage"], sort=False)
    ]


def site_costs(exchanges: pd.DataFrame) -> list[dict[str, Any]]:
    """The same for each site of the methods that have several: a row a site, columns by stage."""
    tables = []
    for method, of_method in exchanges.groupby("method", sort=False):
        stages = list(dict.fromkeys(of_method["stage"]))
        rows = {
            str(site): [
                figure
                for stage in stages
                for figure in _costs(of_site[of_site["stage"] == stage]).values()
            ]
            for site, of_site in of_method.groupby("site")
        }
        if len(rows) > 1:
            tables.append({"method": str(method), "stages": stages, "rows": rows})
    return tables


def _costs(requests: pd.DataFrame) -> dict[str, str]:
    """Means over the requests that were answered."""
    answered = requests[requests["reply_bytes"] > 0]
    means = {
        "to the site, kB": (answered["request_bytes"].mean() / 1e3, ",.1f"),
        "from the site, kB": (answered["reply_bytes"].mean() / 1e3, ",.1f"),
        "seconds": (answered["seconds"].mean(), ".3f"),
    }
    return {
        name: NOTHING if answered.empty else format(mean, form)
        for name, (mean, form) in means.items()
    }
