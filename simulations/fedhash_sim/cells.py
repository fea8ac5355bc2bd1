"""One cell of a comparison: one method under one seed, from training to its figures.

All three methods are federations of the same machinery: `federated` has all sites, `central` one
site that holds everyone's patients, `local` one federation of a single site for each site. Of
`local`, every site's model answers all queries over the whole database, and the figures are means
over the models; so are those of sites that keep normalisation layers of their own.

1. Training goes on from the last checkpoint; evaluated rounds are not evaluated again.
2. `results.csv` is written last: a cell that has it is done.
3. A release holds one model: there is none of `local`, nor of sites with layers of their own.

    >>> run_cell(Path("runs/demo"), "federated", 0, show=print)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from fedhash.errors import DataError
from fedhash.evaluation.direction import MetricRow
from fedhash.learning.local_training import planned_steps
from fedhash.learning.settings import LearningSettings
from fedhash.models.prepared import PreparedStudies
from fedhash.privacy import spending
from fedhash.privacy.settings import NoPrivacySettings
from fedhash.rounds.coordinator import RoundRecord
from fedhash_sim.cell_evaluation import CellEvaluator, Figures, figure_values
from fedhash_sim.consortium import Consortium
from fedhash_sim.federation import (
    Federation,
    Outcome,
    simulated_identity,
    train_federation,
    untrained,
)
from fedhash_sim.progress import Progress, Show
from fedhash_sim.results import RESULT_COLUMNS, SUM_FACTS, TABLES
from fedhash_sim.run_folder import RunFolder, write_table
from fedhash_sim.settings import Direction, ResolvedStudy

__all__ = ["cell_name", "federations_of", "run_cell"]


def cell_name(method: str, seed: int) -> str:
    """How a cell is called on the screen."""
    return f"{method}, seed {seed}"


def run_cell(run: Path, method: str, seed: int, show: Show) -> None:
    """Train and evaluate one cell into its folder.

    Args:
        run: A run folder whose configuration and consortium of `seed` are written.
        method: local, federated, central, public or start.
        seed: One of the study's seeds.
        show: Is told after each round.

    Raises:
        FedhashError: The cell cannot be finished; what is done so far stays.
    """
    torch.set_num_threads(1)  # the same sums whatever the number of workers
    folder, study = RunFolder.existing(run)
    cell = folder.cell(method, seed)
    if cell.is_done:
        return
    consortium = Consortium.load(folder.data(seed))
    federations = federations_of(study, consortium, method, seed)
    rounds_total = 0 if method == "start" else study.round_of[method].rounds
    figures: dict[str, dict[int, Figures]] = {}
    tables: dict[str, list[Sequence[object]]] = {
        name: [] for name in (*_ROUND_TABLES, "privacy.csv", "margins.csv")
    }
    for place, federation in enumerate(federations):
        work = cell.path / "models" / str(place)
        evaluator = CellEvaluator(study, consortium, work, seed)
        done = place * rounds_total

        def on_round(
            record: RoundRecord,
            models: Callable[[], Mapping[str, np.ndarray]],
            evaluator: CellEvaluator = evaluator,
            done: int = done,
        ) -> None:
            evaluator.after_round(record.round_number, rounds_total, models)
            loss = "" if record.mean_loss is None else f"loss {record.mean_loss:.3f}"
            show(
                Progress(
                    cell_name(method, seed),
                    done + record.round_number,
                    len(federations) * rounds_total,
                    record.failure or loss,
                )
            )

        if method == "start":
            work.mkdir(parents=True, exist_ok=True)
            outcome = untrained(federation)
        else:
            outcome = train_federation(federation, study.settings.engine, work, on_round)
        figures |= evaluator.figures(outcome.models, rounds_total)
        for name, rows_of in _ROUND_TABLES.items():
            if name == "sums.csv" and federation.settings.aggregation == "plain":
                continue  # it would be a row without any fact
            tables[name] += [
                (method, seed, federation.model_of, record.round_number, *row)
                for record in outcome.records
                for row in rows_of(record)
            ]
        tables["privacy.csv"] += [(method, seed, *row) for row in _privacy_rows(outcome)]
        tables["margins.csv"] += [
            (method, seed, federation.model_of, *row)
            for row in _margin_rows(outcome, study.agreement.findings)
        ]
        if method != "local" and set(outcome.models) == {federation.model_of}:
            final = figures[federation.model_of][rounds_total]
            # a figure over private databases has no noise, whoever trained, and a release goes out
            tells = all(
                isinstance(settings.privacy, NoPrivacySettings)
                for settings in study.round_of.values()
            )
            metrics = {
                f"map {direction.query} -> {direction.target}": row.value
                for direction, row in final
                if tells and (row.metric, row.group) == ("map", "all")
            }
            outcome.save_release(cell.path / "release", study.agreement, metrics)
    for name, rows in tables.items():
        write_table(cell.path / name, TABLES[name], rows)
    write_table(
        cell.path / "results.csv",
        RESULT_COLUMNS,
        [
            (method, seed, number, direction.query, direction.target, *figure_values(row))
            for number, direction, row in _over_models(figures)
        ],
    )


def federations_of(
    study: ResolvedStudy, consortium: Consortium, method: str, seed: int
) -> list[Federation]:
    """The federations that a method trains.

    Raises:
        DataError: A site would take more local steps than the agreement allows.
    """
    settings = consortium.with_frozen(study.round_of[method])
    sites = consortium.sites
    if method == "federated":
        holdings = [("consortium", {site: consortium.training(site) for site in sites})]
    elif method == "central":
        holdings = [("central", {"central": consortium.training(*sites)})]
    elif method in {"public", "start"}:  # there is nobody to protect
        holdings = [(method, {"public": consortium.public()})]
        settings = settings.model_copy(update={"privacy": NoPrivacySettings()})
    else:
        holdings = [(site, {site: consortium.training(site)}) for site in sites]
    agreement = study.agreement
    if method == "federated":
        roster = {site: simulated_identity(seed, site).public_hex for site in sites}
        agreement = agreement.model_copy(update={"sites": roster})
    else:  # one party alone has no cohort to hide in, nobody to hide from, and one set of layers
        agreement = agreement.model_copy(update={"smallest_cohort": 1, "sites": {}})
        learning = settings.learning.model_copy(update={"normalisation_layers": "averaged"})
        settings = settings.model_copy(update={"aggregation": "plain", "learning": learning})
    for _, holding in holdings:
        _check_work(holding, settings.learning, agreement.largest_local_steps)
    return [
        Federation(
            model_of,
            f"{method}-seed-{seed}",
            agreement,
            settings,
            studies,
            seed,
            consortium.frozen,
        )
        for model_of, studies in holdings
    ]


def _check_work(
    holding: Mapping[str, PreparedStudies], learning: LearningSettings, most_steps: int
) -> None:
    """Sites cut a round short at the agreement's cap without a word; a study must not."""
    for site, studies in holding.items():
        steps = planned_steps(len(set(studies.patient_ids)), learning)
        if steps > most_steps:
            raise DataError(
                f"a round takes {steps} local steps at {site}, and the agreement's "
                f"largest_local_steps cuts it at {most_steps}; raise that, or lower "
                "learning.local_epochs"
            )


def _over_models(
    figures: Mapping[str, Mapping[int, Figures]],
) -> list[tuple[int, Direction, MetricRow]]:
    """Means over the models; where there are several, each model's mAP beside them."""
    if len(figures) == 1:
        (only,) = figures.values()
        return [(number, *figure) for number, rows in only.items() for figure in rows]
    cells: defaultdict[tuple[int, Direction, str, str], list[float]] = defaultdict(list)
    each_model = []
    for model_of, rounds in figures.items():
        for number, rows in rounds.items():
            for direction, row in rows:
                cells[number, direction, row.metric, row.group].append(row.value)
                if (row.metric, row.group) in {("map", "all"), ("chance_map", "all")}:
                    of_model = MetricRow(row.metric, f"site_model={model_of}", row.value, 1)
                    each_model.append((number, direction, of_model))
    means = [
        (number, direction, MetricRow(metric, group, float(np.mean(values)), len(values)))
        for (number, direction, metric, group), values in cells.items()
    ]
    return means + each_model


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
