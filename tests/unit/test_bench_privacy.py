"""The privacy benches ask for studies that exist, and their tables say what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.figures import SeededFigure
from benchmarks.goals import PRIVACY_GOALS
from benchmarks.privacy_curve import CURVES, EPSILONS, Curve
from benchmarks.privacy_linkage import LINKAGES, Linkage
from benchmarks.rows import privacy_curve_rows, privacy_goal_rows, privacy_linkage_rows
from fedhash_sim.settings import ResolvedStudy, read_study

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def study_of(name: str, changes: list[str]) -> ResolvedStudy:
    return read_study(Path("configs/study") / f"{name}.yaml", changes)


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.case)
@pytest.mark.parametrize("mode", ["distributed", "site"])
def test_every_private_contender_is_a_study_that_fits_its_cap(curve: Curve, mode: str) -> None:
    for epsilon in curve.rates:
        study = study_of(curve.study, curve.changes(mode, epsilon))
        assert study.round.privacy.mode == mode
        assert study.agreement.privacy is not None
        assert study.agreement.privacy.epsilon_cap == epsilon
        assert study.round.rounds == curve.rounds
    assert not curve.rates or set(curve.rates) == set(EPSILONS)


@pytest.mark.parametrize("linkage", LINKAGES, ids=lambda linkage: linkage.case)
def test_every_contender_of_a_linkage_is_a_study(linkage: Linkage) -> None:
    for changes in linkage.contenders.values():
        study = study_of(linkage.study, ["methods=[federated]", *changes])
        assert len(study.settings.seeds) == 3


def figure(case: str, contender: str, name: str, value: float, unit: str = "mAP") -> SeededFigure:
    return SeededFigure(case, contender, name, unit, value, 0.01, 3)


def test_goals_are_shares_of_the_best_figure_without_privacy() -> None:
    name = "map image -> image"
    figures = [
        figure("kermany, frozen, held out", "no privacy", name, 0.6),
        figure("kermany, from scratch, held out", "no privacy", name, 0.8),
        figure("kermany, frozen, held out", "distributed, epsilon 8", name, 0.79),
        figure("kermany, frozen, held out", "distributed, epsilon 3", name, 0.7),
        figure("kermany, frozen, held out", "public, at the start", name, 0.4),
    ]
    rows = {row[:2]: row[2:] for row in privacy_goal_rows(figures)[1:]}
    case = "kermany, frozen, held out"
    assert rows[case, "distributed, epsilon 8"] == ("at least 0.98", "0.988", "met")
    assert rows[case, "distributed, epsilon 3"] == ("at least 0.96", "0.875", "missed")
    assert rows[case, "site, epsilon 8"] == ("at least 0.95", "", "not run")
    assert rows[case, "public, at the start"] == ("none set", "0.500", "")
    assert len(rows) == 2 * (len(PRIVACY_GOALS) + 2)


def test_a_curve_has_a_column_a_privacy() -> None:
    figures = [
        figure("a", "no privacy", "map image -> report", 0.5),
        figure("a", "site, epsilon 1", "map image -> report", 0.25),
        figure("a", "site, epsilon 1", "epsilon of the site that spent most", 1.0, "epsilon"),
    ]
    head, row = privacy_curve_rows(figures)
    cells = dict(zip(head, row, strict=True))
    assert (cells["study"], cells["direction"]) == ("a", "image → report")
    assert (cells["no privacy"], cells["site, epsilon 1"]) == ("0.500 ± 0.010", "0.250 ± 0.010")
    assert cells["distributed, epsilon 8"] == ""


def test_recall_stands_beside_its_change_against_the_contrastive_loss() -> None:
    name = "recall@1, random, codes, image -> report"
    figures = [
        figure("a", contender, name, value, "recall@1")
        for contender, value in (("anchor", 0.002), ("contrastive", 0.01))
    ]
    _, recall, change = privacy_linkage_rows(figures)
    assert recall == ("a", name.replace("->", "→"), "0.002 ± 0.01", "0.01 ± 0.01")
    assert change == ("a", "... change against contrastive", "-80.0 %", "+0.0 %")
