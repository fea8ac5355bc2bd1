"""What a sweep found: `sweep.csv`, one row a figure, and `sweep.md`, means beside chance.

`sweep.csv` has the point's folder, one column an axis of the grid, and then queries, method, seed,
query, target, metric, value, count: the figures over all queries after the last round. The same
sweep gives the same bytes, whatever the number of workers.

>>> write_tables(Path("runs/losses"), sweep.settings, sweep.points, winners=(), diverged={})
>>> str(sweep_rows(Path("runs/losses"), sweep.points)[0].figures["map"])
'0.712 ± 0.004'
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhash_sim.results import (
    Spread,
    final_round,
    main_table,
    read_results,
    with_worst_finding,
)
from fedhash_sim.run_folder import explained, write_table
from fedhash_sim.sweeps.choice import Winner
from fedhash_sim.sweeps.points import COLUMNS, Point
from fedhash_sim.sweeps.settings import SweepSettings

__all__ = ["METRICS", "SweepRow", "sweep_rows", "write_tables"]

METRICS = {
    "map": "mAP",
    "macro_map": "mAP, mean over findings",
    "worst_map": "mAP of the worst finding",
}


@dataclass(frozen=True)
class SweepRow:
    """One method of a point in one direction.

    Attributes:
        point: The point.
        method: One of its study's.
        query: Modality that asks.
        target: Modality that is searched.
        figures: map, macro_map and worst_map over the seeds.
        chance: The level of chance of each.
    """

    point: Point
    method: str
    query: str
    target: str
    figures: Mapping[str, Spread]
    chance: Mapping[str, Spread]

    def as_json(self) -> dict[str, Any]:
        """JSON-able form; what there is none of is null."""
        return {
            "point": self.point.name,
            "choices": dict(self.point.choices),
            "queries": self.point.queries,
            "method": self.method,
            "query": self.query,
            "target": self.target,
            **{metric: each.as_json() for metric, each in self.figures.items()},
            "chance": {metric: each.as_json()["mean"] for metric, each in self.chance.items()},
        }


def sweep_rows(out: Path, points: Sequence[Point]) -> list[SweepRow]:
    """The rows of finished points, in their order.

    Raises:
        DataError: A point has no results yet, or they are damaged.
    """
    rows = []
    for point in points:
        results = with_worst_finding(read_results(out / point.name))
        methods = point.study.settings.methods
        of_methods = [  # each alone: another's worst finding has another level of chance
            zip(*(main_table(results[results["method"] == each], m) for m in METRICS), strict=True)
            for each in methods
        ]
        rows += [
            SweepRow(
                point,
                method,
                figures[0].query,
                figures[0].target,
                {each.metric: each.methods[method] for each in figures},
                {each.metric: each.chance for each in figures},
            )
            for of_direction in zip(*of_methods, strict=True)
            for method, figures in zip(methods, of_direction, strict=True)
        ]
    return rows


def write_tables(
    out: Path,
    settings: SweepSettings,
    points: Sequence[Point],
    winners: Sequence[Winner],
    diverged: Mapping[str, str],
) -> None:
    """Write `sweep.csv` and `sweep.md`.

    Args:
        out: The sweep's folder.
        settings: The sweep file.
        points: All that were trained, those of the test last.
        winners: What was chosen, under `select`.
        diverged: The names of those that did, with the reason.

    Raises:
        DataError: A point has no results, or they are damaged.
    """
    axes = tuple(settings.grid)
    rows = [row for point in points for row in _csv_rows(out, point, axes)]
    write_table(out / "sweep.csv", (COLUMNS[0], *axes, *COLUMNS[1:]), rows)
    text = "\n".join(_markdown(settings, sweep_rows(out, points), winners, diverged)) + "\n"
    with explained(out / "sweep.md"):
        unfinished = out / "sweep.md.tmp"
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(out / "sweep.md")


def _csv_rows(out: Path, point: Point, axes: Sequence[str]) -> Iterator[Sequence[object]]:
    results = final_round(with_worst_finding(read_results(out / point.name)))
    choices = [point.choices[axis] for axis in axes]
    for row in results[results["group"] == "all"].itertuples():
        figure = (row.query, row.target, row.metric, f"{row.value:.6f}", row.count)
        yield (point.name, *choices, point.queries, row.method, row.seed, *figure)


def _markdown(
    settings: SweepSettings,
    rows: Sequence[SweepRow],
    winners: Sequence[Winner],
    diverged: Mapping[str, str],
) -> Iterator[str]:
    axes = tuple(settings.grid)
    headings = [each for title in METRICS.values() for each in (title, "chance")]
    yield f"# {settings.name}"
    yield ""
    yield "Mean ± sd over the seeds; chance is the same items in random order."
    if settings.select is not None:
        select = settings.select
        where = select.direction
        asked = "all directions" if where is None else f"{where.query} → {where.target}"
        found = f"{select.metric} of {select.method} on {select.queries}, {asked}"
        yield f"Chosen on {select.queries}: {', '.join(select.over)}, by {found}."
        yield from _table(
            (*axes, found),
            [(*(w.search.choices[axis] for axis in axes), str(w.figure)) for w in winners],
        )
    for queries in dict.fromkeys(row.point.queries for row in reversed(rows)):  # the test first
        yield ""
        yield f"## Queries of {queries}"
        yield from _table(
            (*axes, "method", "direction", *headings, "seeds"),
            [
                (
                    *(row.point.choices[axis] for axis in axes),
                    row.method,
                    f"{row.query} → {row.target}",
                    *(str(of[metric]) for metric in METRICS for of in (row.figures, row.chance)),
                    str(row.figures["map"].seeds),
                )
                for row in rows
                if row.point.queries == queries
            ],
        )
    if diverged:
        yield ""
        yield "## Diverged"
        yield from _table(("point", "why"), list(diverged.items()))


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield ""
    for row in (headings, ["---"] * len(headings), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
