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

from fedhash.errors import CheckpointError, ReleaseError
from fedhash.evaluation.direction import MetricRow
from fedhash.privacy.settings import NoPrivacySettings
from fedhash.rounds.coordinator import RoundRecord
from fedhash_sim.cell_evaluation import CellEvaluator, Figures, figure_values
from fedhash_sim.cell_tables import model_tables
from fedhash_sim.consortium import Consortium
from fedhash_sim.costs import cost_row
from fedhash_sim.federation import (
    Federation,
    simulated_identity,
    train_federation,
    untrained,
)
from fedhash_sim.peak_memory import PeakMemory
from fedhash_sim.progress import Progress, Show
from fedhash_sim.results import RESULT_COLUMNS, TABLES
from fedhash_sim.run_folder import RunFolder, explained, write_table
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
    tables: defaultdict[str, list[Sequence[object]]] = defaultdict(list)
    for place, federation in enumerate(federations):
        work = cell.path / "models" / str(place)
        # of a training that goes on, or of Flower's processes, nobody knows the peak
        unknown = (work / "checkpoints").exists() or study.settings.engine == "flower"
        memory = None if unknown else PeakMemory()
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
        for name, rows in model_tables(outcome, study.agreement.findings).items():
            tables[name] += [(method, seed, *row) for row in rows]
        peak = None if memory is None else memory.peak_bytes()
        costs = cost_row(outcome, evaluator.seconds, peak)
        tables["costs.csv"].append((method, seed, federation.model_of, *costs))
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
            try:
                outcome.save_release(cell.path / "release", study.agreement, metrics)
            except ReleaseError as error:
                raise CheckpointError(
                    f"{cell.path / 'release'} is in the way ({error}); remove it and run the study "
                    "again: nothing is trained twice"
                ) from error
            with explained(cell.path):
                evaluator.code_sample(outcome.model).save(cell.path / "codes.safetensors")
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
    """The federations that a method trains."""
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
