"""Retrieval figures of docs/benchmarks.md: local, federated and central beside chance.

Sums are plain: make bench-secagg shows that secure ones give the same figures.

Runs the studies below, prints their tables and the goals, and writes build/bench/quality.csv, or
quality-part.csv where studies are left out or failed, with the columns case, contender, figure,
unit, value, sd, seeds. Each study has a run folder in build/bench/quality/: an interrupted bench
goes on where it stopped, and a finished study is not run again. A study that fails does not stop
the others; the exit status is then 1.

What each kappa finds in the federated runs of RADIUS_STUDIES goes to quality-radius.csv, in the
same columns; studies that are not run now keep their rows there.

    make bench-quality
    .venv/bin/python -m benchmarks.bench_quality --only kermany_hog_held_out --replace
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.figures import BENCH, SeededFigure, read_figures, write_figures
from benchmarks.rows import RADIUS_FIGURES, as_table, goal_rows, quality_rows, radius_rows
from fedhash.errors import DataError, FedhashError
from fedhash_sim.kappa import kappa_table
from fedhash_sim.results import Spread, main_table, read_results
from fedhash_sim.settings import RecipeSource, read_study
from fedhash_sim.sources import recipe_folder
from fedhash_sim.study_run import run_study

STUDIES = (
    "kermany_hog_train_database",
    "kermany_hog_held_out",
    "phantom_dirichlet",
    "ptbxl_sites",
    "covid_locations",
    "kermany_convnet_train_database",
    "kermany_convnet_held_out",
)
RADIUS_STUDIES = ("kermany_hog_held_out", "phantom_dirichlet")  # one finding a study, and several
RUNS = BENCH / "quality"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=STUDIES, nargs="+", default=STUDIES)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--replace",
        action="store_true",
        help="begin the chosen studies anew; earlier runs are moved to NAME.previous",
    )
    chosen = parser.parse_args()
    console = Console()
    figures: dict[str, list[SeededFigure]] = {}
    failures: dict[str, FedhashError] = {}
    for name in chosen.only:
        console.rule(name)
        try:
            study = read_study(Path("configs/study") / f"{name}.yaml", ["round.aggregation=plain"])
            if isinstance(study.settings.data, RecipeSource):
                try:
                    recipe_folder(study.settings.data)
                except DataError as error:
                    console.print(f"[yellow]left out:[/] {error}")
                    continue
            run_study(
                study,
                RUNS / name,
                workers=chosen.workers,
                replace=chosen.replace,
                command=f"make bench-quality ({name})",
                console=console,
            )
            figures[name] = list(_figures(name, RUNS / name))
        except FedhashError as error:
            failures[name] = error
            console.print(f"failed: {error}", style="red", markup=False, soft_wrap=True)

    rows = [figure for each in figures.values() for figure in each]
    path = BENCH / ("quality.csv" if len(figures) == len(STUDIES) else "quality-part.csv")
    write_figures(path, SeededFigure, rows)
    by_kappa = [each for name in figures for each in _by_kappa(name, RUNS / name)]
    _update(BENCH / "quality-radius.csv", by_kappa)
    console.print(as_table(quality_rows(rows), "tie-aware mAP, mean ± sd over seeds"))
    console.print(as_table(goal_rows(rows), "goals"))
    console.print(as_table(radius_rows(by_kappa), "what each kappa finds, federated"))
    for name, failure in failures.items():
        console.print(
            f"failed: {name}: {failure}\n  Its run folder is {RUNS / name}. If that is of an older "
            "version, begin anew:\n  "
            f".venv/bin/python -m benchmarks.bench_quality --only {name} --replace",
            style="red",
            markup=False,
            soft_wrap=True,
        )
    if failures:
        raise SystemExit(1)


def _figures(name: str, run: Path) -> Iterator[SeededFigure]:
    results = read_results(run)
    for row in [*main_table(results), *main_table(results, "macro_map")]:
        figure = f"{row.metric} {row.query} -> {row.target}"
        for contender, each in {**row.methods, "chance": row.chance}.items():
            yield SeededFigure(name, contender, figure, "mAP", each.mean, each.sd, each.seeds)


def _by_kappa(name: str, run: Path) -> Iterator[SeededFigure]:
    """What each kappa finds with the federated model."""
    if name not in RADIUS_STUDIES:
        return
    for row in kappa_table(read_results(run)):
        if row.method == "federated":
            for figure in RADIUS_FIGURES:
                each: Spread = getattr(row, figure)
                yield SeededFigure(
                    name,
                    f"kappa {row.kappa:g}, {row.radius_bits} bits",
                    f"{figure} {row.query} -> {row.target}",
                    "share of 1",
                    each.mean,
                    each.sd,
                    each.seeds,
                )


def _update(path: Path, rows: Sequence[SeededFigure]) -> None:
    """Put a study's new rows in the place of its former ones; other studies keep theirs."""
    if rows:
        new = {each.case for each in rows}
        former = read_figures(path, SeededFigure) if path.is_file() else []
        write_figures(path, SeededFigure, [*(e for e in former if e.case not in new), *rows])


if __name__ == "__main__":
    main()
