"""Precision and recall at each kappa, as they are read off a run's figures by radius."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedhash.codes import hamming_distances, pack_signs
from fedhash.evaluation.direction import MetricRow, evaluate_direction
from fedhash.search import radius_from_kappa
from fedhash_sim.kappa import KAPPAS, kappa_table
from fedhash_sim.results import RESULT_COLUMNS, read_results
from fedhash_sim.run_folder import write_table

BITS = 32


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Codes near one of three findings, some of them exactly on its code; 25 queries, 60 items."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((85, 3)) < 0.4).astype(np.int8)
    centres = rng.choice([-1.0, 1.0], (3, BITS))
    outputs = centres[rng.integers(0, 3, 85)]
    outputs = np.where(rng.random(outputs.shape) < rng.choice([0, 0.2], (85, 1)), -outputs, outputs)
    codes = pack_signs(outputs)
    return codes[:25], labels[:25], codes[25:], labels[25:]


def figures(seed: int, rows: Iterable[MetricRow], round_number: int = 4) -> Iterator[tuple]:
    for row in rows:
        yield (
            *("federated", seed, round_number, "image", "report"),
            *(row.metric, row.group, row.value, row.count),
        )


def results(folder: Path, rows: Iterable[tuple]) -> pd.DataFrame:
    write_table(folder / "results.csv", RESULT_COLUMNS, rows)
    return read_results(folder)


def test_the_table_is_what_counting_the_pairs_gives(tmp_path: Path) -> None:
    seeds = (0, 1, 2)
    rows = [
        figure
        for seed in seeds
        for figure in figures(seed, evaluate_direction(*drawn(seed), findings=("a", "b", "c")))
    ]
    earlier = [(*row[:2], 2, *row[3:7], 0.5, row[8]) for row in rows]  # of an earlier round
    table = kappa_table(results(tmp_path, [*earlier, *rows]))
    assert [row.kappa for row in table] == list(KAPPAS)
    empties = []
    for row in table:
        radius = radius_from_kappa(row.kappa, BITS)
        assert (row.query, row.target, row.method) == ("image", "report", "federated")
        assert row.radius_bits == radius
        expected = np.array([counted(*drawn(seed), radius) for seed in seeds])
        spreads = (row.precision, row.precision_of_found, row.recall, row.empty, row.chance)
        for spread, values in zip(spreads, expected.T, strict=True):
            assert spread.seeds == 3
            assert spread.mean == pytest.approx(values.mean(), abs=1e-6)
            assert spread.sd == pytest.approx(values.std(ddof=1), abs=1e-6)
        empties.append(row.empty.mean)
    assert empties == sorted(empties)
    assert 0 == empties[0] < empties[-1], "some queries find nothing, or the test shows little"


def counted(
    query_codes: np.ndarray,
    query_labels: np.ndarray,
    codes: np.ndarray,
    labels: np.ndarray,
    radius: int,
) -> tuple[float, ...]:
    """The figures from one query after another."""
    precisions, recalls, chances = [], [], []
    for code, label in zip(query_codes, query_labels, strict=True):
        relevant = (labels & label).any(axis=1)
        found = hamming_distances(code[None], codes)[0] <= radius
        precisions.append(relevant[found].mean() if found.any() else None)
        chances.append(relevant.mean())
        if relevant.any():
            recalls.append(found[relevant].mean())
    of_found = [each for each in precisions if each is not None]
    return (
        sum(of_found) / len(precisions),
        float(np.mean(of_found)),
        float(np.mean(recalls)),
        precisions.count(None) / len(precisions),
        float(np.mean(chances)),
    )


def test_a_kappa_at_which_no_query_finds_anything_has_no_precision_of_found(
    tmp_path: Path,
) -> None:
    codes = pack_signs(np.ones((2, BITS)))
    labels = np.ones((2, 1), np.int8)
    opposite = evaluate_direction(codes, labels, ~codes, labels, findings=("a",))
    *_, last = kappa_table(results(tmp_path, figures(0, opposite)))
    assert (str(last.precision), str(last.empty)) == ("0.000", "1.000")
    assert str(last.precision_of_found) == "none"
    told = json.loads(json.dumps(last.as_json(), allow_nan=False))
    assert told["precision_of_found"] == {"mean": None, "sd": None, "seeds": 0}
    assert (told["kappa"], told["radius_bits"], told["empty"]["mean"]) == (1, 0, 1)


def test_a_run_of_an_older_version_has_no_share_of_empty_balls(tmp_path: Path) -> None:
    rows = evaluate_direction(*drawn(0), findings=("a", "b", "c"))
    older = [row for row in rows if row.metric != "empty_in_radius"]
    for row in kappa_table(results(tmp_path, figures(0, older))):
        assert (str(row.empty), str(row.precision_of_found)) == ("none", "none")
        assert row.precision.seeds == row.recall.seeds == row.chance.seeds == 1


def test_figures_without_a_radius_make_no_table(tmp_path: Path) -> None:
    assert kappa_table(results(tmp_path, figures(0, [MetricRow("map", "all", 0.5, 3)]))) == []
