"""Retrieval figures of docs/benchmarks.md: local, federated and central beside chance.

Runs the studies below (an interrupted bench goes on where it stopped), prints one table and writes
build/bench/quality.csv, or quality-part.csv where studies are left out (case, contender, figure,
unit, value, sd, seeds).

    make bench-quality
    .venv/bin/python benchmarks/bench_quality.py --only kermany_hog_held_out
"""

from __future__ import annotations

import argparse
import csv
import os
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fedhash.errors import DataError
from fedhash_sim.results import MainRow, main_table, read_results
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
BENCH = Path("build/bench")
COLUMNS = ("case", "contender", "figure", "unit", "value", "sd", "seeds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=STUDIES, nargs="+", default=STUDIES)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    chosen = parser.parse_args()
    console = Console()
    tables: dict[str, list[MainRow]] = {}
    for name in chosen.only:
        study = read_study(Path("configs/study") / f"{name}.yaml")
        if isinstance(study.settings.data, RecipeSource):
            try:
                recipe_folder(study.settings.data)
            except DataError as error:
                console.print(f"[yellow]left out:[/] {name}: {error}")
                continue
        console.rule(name)
        folder = run_study(
            study,
            BENCH / "quality" / name,
            workers=chosen.workers,
            replace=False,
            command=f"make bench-quality ({name})",
            console=console,
        )
        results = read_results(folder.path)
        tables[name] = [*main_table(results), *main_table(results, "macro_map")]
    _write(tables, BENCH / ("quality.csv" if len(tables) == len(STUDIES) else "quality-part.csv"))
    console.print(_shown(tables))


def _write(tables: dict[str, list[MainRow]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for name, rows in tables.items():
            for row in rows:
                figure = f"{row.metric} {row.query} -> {row.target}"
                for contender, each in {**row.methods, "chance": row.chance}.items():
                    values = (f"{each.mean:.4f}", f"{each.sd:.4f}", each.seeds)
                    writer.writerow((name, contender, figure, "mAP", *values))


def _shown(tables: dict[str, list[MainRow]]) -> Table:
    shown = Table(title="tie-aware mAP, mean ± sd over seeds", title_justify="left")
    for heading in ("study", "figure", "local", "federated", "central", "chance", "fed / central"):
        shown.add_column(heading, justify="left" if heading in {"study", "figure"} else "right")
    for name, rows in tables.items():
        for row in rows:
            methods = [row.methods.get(method) for method in ("local", "federated", "central")]
            federated, central = methods[1:]
            shown.add_row(
                name,
                f"{row.metric} {row.query} → {row.target}",
                *(str(each) if each else "" for each in methods),
                str(row.chance),
                f"{federated.mean / central.mean:.3f}" if federated and central else "",
            )
        shown.add_section()
    return shown


if __name__ == "__main__":
    main()
