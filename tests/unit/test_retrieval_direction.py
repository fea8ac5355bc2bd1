"""Rows of one retrieval direction: groups, macro means and figures that do not exist."""

from __future__ import annotations

import numpy as np
import pytest

from fedhash.codes import pack_signs
from fedhash.errors import DataError
from fedhash.evaluation.direction import MetricRow, evaluate_direction
from fedhash.evaluation.retrieval import average_precision, count_pairs, shuffled

FINDINGS = ("effusion", "nodule", "device", "no_finding")


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, str], MetricRow]:
    found = evaluate_direction(
        *direction(), findings=FINDINGS, depth=20, query_attributes=attributes()
    )
    assert len({(row.metric, row.group) for row in found}) == len(found)
    return {(row.metric, row.group): row for row in found}


def direction() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """30 queries and 50 items; no query has a device; queries 0 to 4 have no finding at all."""
    rng = np.random.default_rng(11)
    codes = pack_signs(rng.standard_normal((80, 16)))
    labels = rng.integers(-1, 2, (80, 4), dtype=np.int8)
    labels[:30, 2] = 0
    labels[:5] = 0
    return codes[:30], labels[:30], codes[30:], labels[30:]


def attributes() -> list[dict[str, str]]:
    return [{"sex": "F" if i % 3 else "M"} for i in range(30)]


def test_overall_figures_leave_out_queries_without_a_relevant_item(
    rows: dict[tuple[str, str], MetricRow],
) -> None:
    ap = average_precision(count_pairs(*direction()), 20)
    assert np.isnan(ap[:5]).all()
    assert rows["map", "all"].value == pytest.approx(np.nanmean(ap))
    assert rows["map", "all"].count == (~np.isnan(ap)).sum() <= 25
    assert rows["precision_in_ball", "all"].count == 30
    assert 0 < rows["empty_ball_share", "all"].value < 1
    assert rows["recall_in_radius", "radius=16"].value == 1
    assert rows["precision_in_ball", "all"].value == rows["precision_in_radius", "radius=2"].value
    assert rows["empty_ball_share", "all"].value == rows["empty_in_radius", "radius=2"].value
    assert rows["empty_in_radius", "radius=16"] == MetricRow(
        "empty_in_radius", "radius=16", 0.0, 30
    )


def test_finding_groups_ask_for_that_finding_alone(
    rows: dict[tuple[str, str], MetricRow],
) -> None:
    query_codes, query_labels, codes, labels = direction()
    positive = query_labels[:, 1] == 1
    alone = count_pairs(query_codes[positive], query_labels[positive, 1:2], codes, labels[:, 1:2])
    row = rows["map", "finding=nodule"]
    assert row.value == pytest.approx(average_precision(alone, 20).mean())
    assert row.count == positive.sum()
    expected_chance = average_precision(shuffled(alone), 20).mean()
    assert rows["chance_map", "finding=nodule"].value == pytest.approx(expected_chance)


def test_macro_is_the_mean_of_the_findings_that_have_queries(
    rows: dict[tuple[str, str], MetricRow],
) -> None:
    assert ("map", "finding=device") not in rows
    for metric in ("map", "chance_map"):
        values = [rows[metric, f"finding={name}"].value for name in FINDINGS if name != "device"]
        assert rows[f"macro_{metric}", "all"].value == pytest.approx(np.mean(values))
        assert rows[f"macro_{metric}", "all"].count == 3


def test_attribute_groups_split_the_queries(rows: dict[tuple[str, str], MetricRow]) -> None:
    female, male, both = (rows["map", group] for group in ("sex=F", "sex=M", "all"))
    assert female.count + male.count == both.count
    mean = (female.value * female.count + male.value * male.count) / both.count
    assert mean == pytest.approx(both.value)


def test_perfect_codes_reach_one_and_chance_stays_below() -> None:
    labels = np.tile(np.eye(2, dtype=np.int8), (20, 1))
    codes = pack_signs(np.repeat(2.0 * labels - 1, 8, axis=1))
    rows = evaluate_direction(codes[:6], labels[:6], codes[6:], labels[6:], findings=("a", "b"))
    values = {(row.metric, row.group): row.value for row in rows}
    for metric in ("map", "macro_map", "ndcg", "precision_in_ball"):
        assert values[metric, "all"] == pytest.approx(1)
    assert 0.5 < values["chance_map", "all"] < 0.6


def test_row_reads_as_one_line() -> None:
    assert str(MetricRow("map", "sex=F", 0.51234, 12)) == "map sex=F 0.5123 (n=12)"


@pytest.mark.parametrize(("queries", "items"), [(0, 2), (2, 0), (0, 0)])
def test_no_query_or_no_database_item_is_refused(queries: int, items: int) -> None:
    codes, labels = pack_signs(np.ones((2, 16))), np.ones((2, 1), np.int8)
    with pytest.raises(DataError, match=f"{queries} queries and {items} database items"):
        evaluate_direction(
            codes[:queries], labels[:queries], codes[:items], labels[:items], findings=("a",)
        )


def test_figures_without_any_query_have_no_row() -> None:
    codes = pack_signs(np.ones((2, 16)))
    nothing = np.zeros((2, 1), np.int8)
    metrics = {
        row.metric for row in evaluate_direction(codes, nothing, codes, nothing, findings=("a",))
    }
    assert metrics == {
        "precision_in_ball",
        "empty_ball_share",
        "precision_in_radius",
        "empty_in_radius",
    }
