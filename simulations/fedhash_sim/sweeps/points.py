"""From a sweep file to its points: the combinations of the grid, each a study of its own.

1. Every point is read and checked before any work; all that is wrong comes at once, each mistake
   at the line of the choice that makes it.
2. Of two changes, `round.loss` and `round.loss.margin`, the inner one counts, whatever their order.
3. A point's folder is named after its choices; points with equal settings share the first one's.

>>> sweep = read_sweep(Path("configs/sweep/losses.yaml"))
>>> sweep.points[0].name
'loss=anchor_margin,learning_rate=0.0002,queries=val'
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from pathlib import Path

from pydantic import JsonValue

from fedhash.configuration import (
    KeyPath,
    did_you_mean,
    gathered,
    override,
    problem_at,
    read_settings,
)
from fedhash.errors import ConfigurationError, Problem
from fedhash_sim.folder_kinds import PREVIOUS
from fedhash_sim.run_folder import configuration_files, file_name
from fedhash_sim.settings import ResolvedStudy, StudySettings, read_study
from fedhash_sim.sweeps.settings import Select, SweepSettings

__all__ = ["COLUMNS", "Choices", "Point", "Sweep", "read_sweep"]

Choices = Mapping[str, str]  # axis to the choice as it is written
COLUMNS = ("point", "queries", "method", "seed", "query", "target", "metric", "value", "count")
_MOST_POINTS = 500  # each holds a lock, a file that stays open
_LONGEST_NAME_BYTES = 150


@dataclass(frozen=True)
class Point:
    """One combination of the grid.

    Attributes:
        name: Of its run folder.
        choices: Axis to choice.
        study: What runs there.
    """

    name: str
    choices: Choices
    study: ResolvedStudy

    @property
    def queries(self) -> str:
        """The split that asks."""
        return self.study.settings.evaluation.queries


@dataclass(frozen=True)
class Sweep:
    """A sweep file with the studies of its points.

    Attributes:
        file: The sweep file.
        settings: What it says.
        points: What runs first: all of the grid, under `select` as its search.
        tests: Under `select` the same points as they run on `test` if they are chosen, else empty.
    """

    file: Path
    settings: SweepSettings
    points: tuple[Point, ...]
    tests: tuple[Point, ...]


def read_sweep(path: Path, changes: Sequence[str] = ()) -> Sweep:
    """Read a sweep file, and the study of every point.

    Args:
        path: The sweep file.
        changes: `key=value` for the study of every point, as `fedhash-sim run --set` has them.

    Raises:
        ConfigurationError: The file, the study or a point is wrong; holds all that was found.
    """
    settings = read_settings(path, SweepSettings)
    if problems := [problem_at(path, *each) for each in _contradictions(settings, changes)]:
        raise ConfigurationError(problems)
    reader = _Reader(path, settings, changes)
    points: tuple[Point, ...]
    tests: tuple[Point, ...]
    select = settings.select
    if select is None:
        points, tests = reader.points([]), ()
    else:
        search = [f"evaluation.queries={select.queries}", f"methods=[{select.method}]"]
        search += [] if select.seeds is None else [f"seeds={list(select.seeds)}"]
        points, tests = reader.points(search), reader.points(["evaluation.queries=test"])
        for test in tests:
            reader.problems |= {
                problem_at(path, *fault): None for fault in _select_faults(select, test.study)
            }
    if reader.problems:
        raise ConfigurationError(list(reader.problems))
    return Sweep(path, settings, points, tests)


def _contradictions(settings: SweepSettings, changes: Sequence[str]) -> list[tuple[KeyPath, str]]:
    """What is wrong with the grid as such, whatever the study."""
    faults: list[tuple[KeyPath, str]] = []
    choices = {axis: settings.choices(axis) for axis in settings.grid}
    keys = {axis: {key for _, each in of for key in each} for axis, of in choices.items()}
    axes_of = Counter(key for each in keys.values() for key in each)
    select = settings.select
    taken = {each.partition("=")[0]: "--set" for each in changes}
    if select is not None:
        searched = ("methods", "evaluation.queries", *(("seeds",) if select.seeds else ()))
        taken |= dict.fromkeys(searched, "the search of select")
    for axis, of in choices.items():
        place = ("grid", axis)
        if axis in COLUMNS or not re.fullmatch(r"[\w.-]+", axis, re.ASCII):
            message = "a column of the tables has this name, or nothing can; choose another"
            faults.append((place, f"grid.{axis}: {message}"))
        faults += [
            (place, f"grid.{axis} has {choice!r}, which cannot be printed; call it otherwise")
            for choice, _ in of
            if not choice.isprintable()
        ]
        faults += [
            (place, f"grid.{axis} has {choice} more than once; keep one")
            for choice, times in Counter(choice for choice, _ in of).items()
            if times > 1
        ]
        for key in sorted(keys[axis]):
            if "=" in key or not all(key.split(".")):
                faults.append((place, f"grid.{axis}: {key!r} is no key; write a.b.c"))
            elif axes_of[key] > 1:
                faults.append((place, f"grid.{axis} sets {key}, and so does another axis"))
            faults += [
                (place, f"grid.{axis} sets {key}, and {who} sets {other}; leave one of them out")
                for other, who in taken.items()
                if f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")
            ]
    faults += _in_vain(settings, choices, changes)
    count = prod(map(len, choices.values()))
    if count > _MOST_POINTS:
        faults.append((("grid",), f"grid has {count} points; at most {_MOST_POINTS} are run"))
    for place_in_list, axis in enumerate(() if select is None else select.over):
        if axis not in settings.grid:
            message = (
                f"select.over has {axis}, no axis of grid; {did_you_mean(axis, settings.grid)}"
            )
            faults.append((("select", "over", place_in_list), message))
    return faults


def _in_vain(
    settings: SweepSettings,
    choices: Mapping[str, Sequence[tuple[str, Mapping[str, JsonValue]]]],
    changes: Sequence[str],
) -> list[tuple[KeyPath, str]]:
    """What is set and holds for no point, because something else always wins."""
    winners = {
        key: f"grid.{axis}"
        for axis, of in choices.items()
        for key in of[0][1]
        if all(key in each for _, each in of)
    }
    if settings.seeds is not None:
        winners["seeds"] = "the sweep's key seeds"
    if settings.select is not None:
        winners["evaluation.queries"] = "select, which asks val and then test,"
    faults: list[tuple[KeyPath, str]] = [
        (("set", key), f"set has {key}, and {who} says it for every point; leave one of them out")
        for key in settings.set
        for winner, who in winners.items()
        if f"{key}.".startswith(f"{winner}.")
    ]
    if settings.select is not None and any(
        each.partition("=")[0] == "evaluation.queries" for each in changes
    ):
        message = "--set sets evaluation.queries, and select asks val and then test; leave it out"
        faults.append((("select",), message))
    return faults


def _select_faults(select: Select, study: ResolvedStudy) -> list[tuple[KeyPath, str]]:
    """What is wrong with a choice in view of the study."""
    faults: list[tuple[KeyPath, str]] = []
    methods, directions = study.settings.methods, study.directions
    if select.method not in methods:
        message = f"select.method is {select.method}; the study runs {', '.join(methods)}"
        faults.append((("select", "method"), message))
    if select.direction is not None and select.direction not in directions:
        asked = ", ".join(f"{each.query} -> {each.target}" for each in directions)
        faults.append((("select", "direction"), f"select.direction: the study asks {asked}"))
    return faults


@dataclass
class _Reader:
    """Reads the studies of points, and gathers what is wrong with them."""

    path: Path
    settings: SweepSettings
    changes: Sequence[str]
    problems: dict[Problem, None] = field(default_factory=dict)  # in order, each once
    _alone: dict[tuple[str, ...], set[str]] = field(default_factory=dict)

    def points(self, more: Sequence[str]) -> tuple[Point, ...]:
        """All points of the grid, with further overrides; none where one is wrong."""
        points, names, taken = [], dict[tuple[str, ...], str](), set[str]()
        axes = {
            axis: [name for name, _ in self.settings.choices(axis)] for axis in self.settings.grid
        }
        for combination in product(*axes.values()):
            choices = dict(zip(axes, combination, strict=True))
            wrong: list[Problem] = []
            with gathered(wrong):
                study = self._study(choices, more)
            for problem in wrong:
                self.problems[self._blamed(problem, choices, more)] = None
            if not wrong:
                texts = tuple(configuration_files(study, self.path.resolve()).values())
                if texts not in names:
                    name = self._name(choices, study)
                    # a choice may be called as another one's folder is
                    names[texts] = name if name not in taken else file_name(f"{name}{choices}")
                    taken.add(names[texts])
                points.append(Point(names[texts], choices, study))
        return tuple(points)

    def _study(
        self, choices: Choices, more: Sequence[str], fixed: Mapping[str, JsonValue] | None = None
    ) -> ResolvedStudy:
        fixed = self.settings.set if fixed is None else fixed
        of_grid = {
            key: value
            for axis, choice in choices.items()
            for key, value in dict(self.settings.choices(axis))[choice].items()
        }
        seeds = [] if self.settings.seeds is None else [f"seeds={list(self.settings.seeds)}"]
        for_all, varied = (self._overrides(each) for each in (fixed, of_grid))
        return read_study(self.settings.study, [*seeds, *for_all, *self.changes, *varied, *more])

    def _overrides(self, values: Mapping[str, JsonValue]) -> list[str]:
        folder = self.path.resolve().parent
        inner_last = sorted(values, key=lambda key: key.count("."))
        return [override(key, values[key], StudySettings, folder) for key in inner_last]

    def _blamed(self, problem: Problem, choices: Choices, more: Sequence[str]) -> Problem:
        """The problem at the choice that makes it, alone or with the others."""
        if problem.message in self._messages({}, more):
            unset: list[Problem] = []
            with gathered(unset):
                self._study({}, more, fixed={})
            if problem.message in {each.message for each in unset}:
                return problem  # the study has it without any change
            return problem_at(self.path, ("set",), f"set: {problem.message}")
        for axis, choice in choices.items():
            if problem.message in self._messages({axis: choice}, more):
                message = f"grid.{axis} = {choice}: {problem.message}"
                return problem_at(self.path, self.settings.place_of(axis, choice), message)
        together = ", ".join(f"{axis} = {choice}" for axis, choice in choices.items())
        return problem_at(self.path, ("grid",), f"{together}: {problem.message}")

    def _messages(self, choices: Choices, more: Sequence[str]) -> set[str]:
        key = (*more, *(f"{axis}={choice}" for axis, choice in choices.items()))
        if key not in self._alone:
            wrong: list[Problem] = []
            with gathered(wrong):
                self._study(choices, more)
            self._alone[key] = {each.message for each in wrong}
        return self._alone[key]

    def _name(self, choices: Choices, study: ResolvedStudy) -> str:
        """A folder's name: the choices, with as much of an axis's name as tells it from others."""
        ends = Counter(axis.rpartition(".")[2] for axis in choices)
        parts = []
        for axis, choice in choices.items():
            end = axis.rpartition(".")[2]
            is_safe = re.fullmatch(r"[\w.+-]{1,40}", choice, re.ASCII)
            # RUN.previous is where an earlier RUN is moved to
            safe = choice if is_safe and PREVIOUS not in choice else file_name(choice)
            parts.append(f"{end if ends[end] == 1 else axis}={safe}")
        if self.settings.select is not None:
            parts.append(f"queries={study.settings.evaluation.queries}")
        name = ",".join(parts)
        return name if len(name.encode()) <= _LONGEST_NAME_BYTES else file_name(name)
