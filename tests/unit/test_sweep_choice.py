"""What a search chooses, and that the test has no say in it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from fedhash.errors import DataError
from fedhash_sim.results import RESULT_COLUMNS, Spread
from fedhash_sim.settings import Direction, read_study
from fedhash_sim.sweeps.choice import choose, figure
from fedhash_sim.sweeps.points import Point, Sweep
from fedhash_sim.sweeps.settings import Select, SweepSettings

DEMO = Path(__file__).parents[2] / "configs" / "study" / "demo.yaml"


def sweep() -> Sweep:
    """Two losses by two rates; the rates are searched."""
    study = read_study(DEMO)
    settings = SweepSettings(
        name="s",
        study=DEMO,
        grid={"loss": {"a": {}, "b": {}}, "rate": (1, 2)},
        select=Select(over=("rate",)),
    )
    choices = [{"loss": loss, "rate": rate} for loss in "ab" for rate in "12"]
    points, tests = (
        tuple(Point(f"{c['loss']}{c['rate']} {queries}", c, study) for c in choices)
        for queries in ("val", "test")
    )
    return Sweep(Path("sweep.yaml"), settings, points, tests)


def results(rows: list[tuple[int, int, str, str, float]]) -> pd.DataFrame:
    """Rows of the federated method: seed, round, query, metric, value."""
    return pd.DataFrame(
        [
            ("federated", seed, number, query, "report", metric, "all", value, 9)
            for seed, number, query, metric, value in rows
        ],
        columns=list(RESULT_COLUMNS),
    )


def test_a_point_that_diverged_is_not_chosen() -> None:
    points = sweep().points
    figures = [Spread(0.1, 0.0, 3), None, None, Spread(0.1, 0.0, 3)]
    winners = choose(sweep(), figures)
    assert [each.search.name for each in winners] == [points[0].name, points[3].name]


def test_the_best_of_val_is_chosen_for_each_loss_and_no_figure_of_test_is_asked_for() -> None:
    on_val = {"a1": 0.5, "a2": 0.6, "b1": 0.4, "b2": 0.3}
    on_test = {"a1": 0.9, "a2": 0.1, "b1": 0.1, "b2": 0.9}  # would choose the other two
    figures = [Spread(value, 0.01, 3) for value in on_val.values()]
    winners = choose(sweep(), figures)
    assert [each.test.name for each in winners] == ["a2 test", "b1 test"]
    assert [each.figure.mean for each in winners] == [0.6, 0.4]
    of_test = choose(sweep(), [Spread(value, 0.01, 3) for value in on_test.values()])
    assert [each.test.name for each in of_test] == ["a1 test", "b2 test"]


def test_the_first_of_equals_is_chosen() -> None:
    winners = choose(sweep(), [Spread(0.5, 0.1, 3)] * 4)
    assert [each.search.name for each in winners] == ["a1 val", "b1 val"]


def test_without_a_figure_nothing_is_chosen() -> None:
    figures = [Spread(0.5, 0.1, 3)] * 3 + [Spread(float("nan"), float("nan"), 0)]
    with pytest.raises(DataError, match="b2 val has no macro_map of federated to choose by"):
        choose(sweep(), figures)


def test_a_figure_is_of_the_last_round_over_directions_first_and_seeds_then() -> None:
    table = results(
        [
            (0, 2, "image", "map", 0.9),  # an earlier round
            (0, 4, "image", "map", 0.2),
            (0, 4, "report", "map", 0.4),
            (1, 4, "image", "map", 0.4),
            (1, 4, "report", "map", 0.6),
            (0, 4, "image", "macro_map", 0.99),
        ]
    )
    both = figure(table, "map", "federated")
    assert (both.mean, both.seeds) == (pytest.approx(0.4), 2)
    assert both.sd == pytest.approx(0.2 / 2**0.5)  # of .3 and .5
    of_one = figure(table, "map", "federated", Direction(query="report", target="report"))
    assert of_one.mean == pytest.approx(0.5)
    assert figure(table, "map", "central").seeds == 0
