"""What only the data tells of a sweep, before a point of it trains.

For every seed of every point the patients are split and dealt, each way of doing it once. Nothing
is prepared or written.

>>> check_data(sweep, [*sweep.points, *sweep.tests], console)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from fedhash.configuration import problem_at
from fedhash.errors import ConfigurationError, Problem
from fedhash_sim.roles import assign_roles
from fedhash_sim.settings import PhantomSource, ResolvedStudy
from fedhash_sim.sources import load_pool
from fedhash_sim.sweeps.points import Point, Sweep

__all__ = ["check_data", "dealt_by"]


def check_data(sweep: Sweep, points: Sequence[Point], console: Console) -> None:
    """Try to split and deal the patients as the points ask.

    Raises:
        ConfigurationError: Some cannot be; holds the first fault of each way of dealing, at the
            sweep's grid.
        DataError: The data cannot be had.
    """
    deals: dict[str, Point] = {}
    for point in points:
        deals.setdefault(dealt_by(point.study), point)
    asked: defaultdict[tuple[str, int | None], list[tuple[Point, int]]] = defaultdict(list)
    for point in deals.values():
        for seed in point.study.settings.seeds:
            drawn = isinstance(point.study.settings.data, PhantomSource)
            asked[_read_by(point.study), seed if drawn else None].append((point, seed))
    problems: dict[str, Problem] = {}
    with TemporaryDirectory() as scratch:
        for of_pool in asked.values():
            point, seed = of_pool[0]
            with console.status(f"dealing the patients of {point.name}, seed {seed}"):
                pool = load_pool(point.study, seed, Path(scratch))
                for point, seed in of_pool:
                    try:
                        assign_roles(point.study, pool, seed)
                    except ConfigurationError as error:
                        together = ", ".join(f"{axis} = {it}" for axis, it in point.choices.items())
                        message = f"{together}: {error.problems[0].message}"
                        problems.setdefault(point.name, problem_at(sweep.file, ("grid",), message))
    if problems:
        raise ConfigurationError(list(problems.values()))


def dealt_by(study: ResolvedStudy) -> str:
    """All that the prepared studies can depend on; training does not change them."""
    return "\n".join(
        (
            study.settings.model_dump_json(),
            study.agreement.model_dump_json(),
            study.round.model_dump_json(exclude={"learning", "loss", "rounds"}),
            "" if study.public_round is None else study.public_round.model_dump_json(),
        )
    )


def _read_by(study: ResolvedStudy) -> str:
    """All that the studies depend on before they are dealt."""
    findings, modalities = study.agreement.findings, tuple(study.round.model.towers)
    return f"{study.settings.data.model_dump_json()} {findings} {modalities}"
