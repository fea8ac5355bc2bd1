"""The margin schedule's ablation of docs/benchmarks.md: what each of its parts does to retrieval.

Federated alone, without privacy and with plain sums, on the studies below with their own seeds and
partitions, but for few rounds and a step of the schedule after every second one. Settings were not
chosen on any split: they are the schedule's defaults. Each variant trains from the same first model
on the same studies. Writes build/bench/margins.csv with the columns case, contender, figure, unit,
value, sd, seeds.

    make bench-margins
    .venv/bin/python -m benchmarks.bench_margins --only kermany_hog_train_database --rounds 40
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from math import nan
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory

import torch
from rich.console import Console

from benchmarks.figures import BENCH, SeededFigure, write_figures
from benchmarks.rows import as_table, margin_rows
from fedhash.errors import DataError, FedhashError
from fedhash.models.hash_model import build_model
from fedhash.models.layout import Layout
from fedhash_sim.cell_evaluation import evaluate_model
from fedhash_sim.cells import federations_of
from fedhash_sim.consortium import Consortium, build_consortium
from fedhash_sim.federation import train_federation
from fedhash_sim.settings import RecipeSource, ResolvedStudy, read_study
from fedhash_sim.sources import recipe_folder

STUDIES = ("phantom_dirichlet", "kermany_hog_train_database")
ROUNDS = 16
_EVERY_SECOND = "every_rounds: 2"
_EVERY = f"{_EVERY_SECOND}, drift_control: true"
VARIANTS = {
    "no schedule": "null",
    "full": f"{{{_EVERY}}}",
    "without shrinkage": f"{{{_EVERY}, shrinkage: false}}",
    "without fairness boost": f"{{{_EVERY}, fairness_boost: false}}",
    "without drift control": f"{{{_EVERY_SECOND}}}",
    "full, target margin .3": f"{{{_EVERY}, target_margin: 0.3}}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=STUDIES, nargs="+", default=STUDIES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    found: defaultdict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    for name in chosen.only:
        try:
            for figure, value in _study_figures(name, chosen.rounds, console):
                found[name, *figure].append(value)
        except FedhashError as error:
            raise SystemExit(f"error: {name}: {error}") from error
    figures = [
        SeededFigure(*key, mean(values), stdev(values) if len(values) > 1 else nan, len(values))
        for key, values in found.items()
    ]
    whole = set(chosen.only) == set(STUDIES) and chosen.rounds == ROUNDS
    write_figures(BENCH / ("margins.csv" if whole else "margins-part.csv"), SeededFigure, figures)
    console.print(as_table(margin_rows(figures), f"after {chosen.rounds} rounds"))


def _study_figures(
    name: str, rounds: int, console: Console
) -> Iterator[tuple[tuple[str, str, str], float]]:
    """Contender, figure and unit with a value, for each variant under each seed."""
    common = ["round.aggregation=plain", "methods=[federated]", f"round.rounds={rounds}"]
    studies = {
        variant: read_study(
            Path("configs/study") / f"{name}.yaml",
            [*common, f"round.margin_schedule={schedule}"],
        )
        for variant, schedule in VARIANTS.items()
    }
    first = next(iter(studies.values()))
    if isinstance(first.settings.data, RecipeSource):
        try:
            recipe_folder(first.settings.data)
        except DataError as error:
            console.print(f"[yellow]left out:[/] {error}")
            return
    for seed in first.settings.seeds:
        with TemporaryDirectory() as folder:
            consortium = build_consortium(first, seed, Path(folder))
        for variant, study in studies.items():
            for figure, unit, value in _variant_figures(study, consortium, seed):
                yield (variant, figure, unit), value
            console.print(f"{name}, seed {seed}: {variant}", highlight=False)


def _variant_figures(
    study: ResolvedStudy, consortium: Consortium, seed: int
) -> Iterator[tuple[str, str, float]]:
    (federation,) = federations_of(study, consortium, "federated", seed)
    with TemporaryDirectory() as folder:
        outcome = train_federation(federation, "inprocess", Path(folder), lambda *_: None)
    model = build_model(study.round.model, study.agreement.code_bits, seed)
    Layout.of(model).load(model, outcome.model)
    rows = evaluate_model(
        model,
        consortium.queries(),
        consortium.database(*consortium.sites),
        study.directions,
        study.agreement.findings,
        (),
        study.settings.evaluation.depth,
    )
    for direction, row in rows:
        if row.metric in {"map", "macro_map"} and row.group == "all":
            yield f"{row.metric} {direction.query} -> {direction.target}", "mAP", row.value
    yield "least margin at the end", "cosine", float(outcome.margins.mu.min())
    yield "largest margin at the end", "cosine", float(outcome.margins.mu.max())
    drifts = [step.drift for step in outcome.margin_steps]
    yield "mean drift", "g", mean(drifts) if drifts else 0.0


if __name__ == "__main__":
    main()
