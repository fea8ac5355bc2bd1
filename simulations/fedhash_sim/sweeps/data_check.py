"""What only the data tells of a sweep, before a point of it trains.

For every seed of every point the patients are split and dealt, each way of doing it once. Nothing
is prepared or written.

>>> check_data(sweep, [*sweep.points, *sweep.tests], console)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from fedhash.configuration import problem_at
from fedhash.errors import ConfigurationError, Problem
from fedhash_sim.refusal import RefusedByDataError
from fedhash_sim.roles import assign_roles, check_local_steps
from fedhash_sim.settings import PhantomSource, ResolvedStudy
from fedhash_sim.sources import Pool, load_pool
from fedhash_sim.sweeps.points import Point, Sweep

__all__ = ["check_data", "dealt_by"]


def check_data(sweep: Sweep, points: Sequence[Point], console: Console) -> None:
    """Try to split and deal the patients as the points ask.

    Raises:
        ConfigurationError: Some cannot be; holds the first fault of each way of dealing, at the
            choice that makes it.
        DataError: The data cannot be had.
    """
    deals: defaultdict[str, list[Point]] = defaultdict(list)
    for point in points:
        deals[dealt_by(point.study)].append(point)
    asked: defaultdict[tuple[str, int | None], list[tuple[list[Point], int]]] = defaultdict(list)
    for alike in deals.values():
        study = alike[0].study
        for seed in study.settings.seeds:
            drawn = isinstance(study.settings.data, PhantomSource)
            asked[_read_by(study), seed if drawn else None].append((alike, seed))
    problems: dict[str, Problem] = {}
    with TemporaryDirectory() as scratch:
        for of_pool in asked.values():
            (first, *_), seed = of_pool[0]
            with console.status(f"dealing the patients of {first.name}, seed {seed}"):
                try:
                    pool = load_pool(first.study, seed, Path(scratch))
                except ConfigurationError as refused:
                    problems.setdefault(first.name, _at_its_choice(sweep, first, refused))
                    continue
                for alike, seed in of_pool:
                    for point, error in _refusals(alike, pool, seed):
                        problems.setdefault(point.name, _at_its_choice(sweep, point, error))
    if problems:
        raise ConfigurationError(list(problems.values()))


def _refusals(
    alike: Sequence[Point], pool: Pool, seed: int
) -> Iterator[tuple[Point, ConfigurationError]]:
    """What is wrong with points that deal in one way; how many steps they take, each tells."""
    try:
        roles = assign_roles(alike[0].study, pool, seed)
    except ConfigurationError as error:
        yield alike[0], error
        return
    for point in alike:
        try:
            check_local_steps(point.study, pool, roles, seed)
        except ConfigurationError as error:
            yield point, error


def _at_its_choice(sweep: Sweep, point: Point, error: ConfigurationError) -> Problem:
    """At the choice that sets what is refused; at the grid where several do, or none."""
    refused = error.__cause__
    place = refused.place if isinstance(refused, RefusedByDataError) else ()
    axes = [
        axis
        for axis, choice in point.choices.items()
        if any(
            all(one == other for one, other in zip(key.split("."), place, strict=False))
            for key in dict(sweep.settings.choices(axis))[choice]
        )
    ]
    together = ", ".join(f"{axis} = {choice}" for axis, choice in point.choices.items())
    at = sweep.settings.place_of(axes[0], point.choices[axes[0]]) if len(axes) == 1 else ("grid",)
    return problem_at(sweep.file, at, f"{together}: {error.problems[0].message}")


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
