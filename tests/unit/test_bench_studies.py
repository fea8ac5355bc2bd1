"""The tables of studies, made of their sweeps' figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.studies import _write_readme
from benchmarks.study_tables import METRICS, comparison_rows, study_rows
from fedhash.errors import DataError
from fedhash_sim.sweeps.points import read_sweep

CONFIGS = Path(__file__).parents[2] / "configs"
SWEEP = """\
name: s
study: {study}
seeds: [0, 1, 2]
grid:
  partition: {{iid: {{}}, natural: {{partition: {{scheme: natural}}}}}}
  loss:
    am: {{round.loss: {{name: anchor_margin}}}}
    csq: {{round.loss: {{name: csq}}}}
    sadh: {{round.loss: {{name: sadh}}}}
  round.learning.learning_rate: [1.0e-3]
select: {{over: [round.learning.learning_rate], metric: {metric}}}
"""
HEAD = "partition,loss,round.learning.learning_rate,method,seed,query,target"


def rows_of(
    folder: Path, metric: str, lines: list[str], sweep: str = SWEEP
) -> list[tuple[str, ...]]:
    study = CONFIGS / "study" / "ptbxl_sites.yaml"
    (folder / "s.sweep.yaml").write_text(sweep.format(study=study, metric=metric))
    columns = f"{HEAD},{','.join(METRICS)}"
    (folder / "s.csv").write_text("\n".join([columns, *lines]) + "\n")
    return study_rows(folder / "s.sweep.yaml")


def lines_of(partition: str, loss: str, values: dict[int, tuple[float, float]]) -> list[str]:
    """Two directions of each seed; the other metrics have figures that must not be read."""
    return [
        f"{partition},{loss},0.001,federated,{seed},image,{target},{value},0.9,0.7,0.25,0.8,0.6"
        for seed, both in values.items()
        for target, value in zip(("image", "report"), both, strict=True)
    ]


def test_a_figure_is_the_mean_over_directions_and_seeds_beside_the_first_column(
    tmp_path: Path,
) -> None:
    lines = [
        *lines_of("iid", "am", {0: (0.5, 0.7), 1: (0.4, 0.6), 2: (0.6, 0.8)}),
        *lines_of("iid", "csq", {0: (0.4, 0.6), 1: (0.3, 0.51), 2: (0.5, 0.7)}),  # lower by .1
        *lines_of("iid", "sadh", {0: (0.9, 0.9), 1: (0.2, 0.2), 2: (0.9, 0.9)}),  # undecided
        *lines_of("natural", "am", {0: (0.1, 0.1), 1: (0.2, 0.2), 2: (0.3, 0.3)}),
        *lines_of("natural", "csq", {0: (0.3, 0.3), 1: (0.4, 0.41), 2: (0.5, 0.5)}),
    ]
    assert rows_of(tmp_path, "map", lines) == [
        ("partition", "am", "csq", "sadh", "chance"),
        ("iid", "0.600 ± 0.100", "0.502 ± 0.098 ▼", "**0.667 ± 0.404**", "0.250"),
        ("natural", "0.200 ± 0.100", "**0.402 ± 0.100 ▲**", "", "0.250"),
    ]


def test_the_metric_is_the_one_that_was_chosen_by(tmp_path: Path) -> None:
    lines = lines_of("iid", "am", {0: (0.5, 0.7)})
    assert rows_of(tmp_path, "macro_map", lines)[1] == ("iid", "**0.900**", "", "", "0.800")


def test_the_finding_that_is_found_worst_has_a_table_of_its_own(tmp_path: Path) -> None:
    rows_of(tmp_path, "map", lines_of("iid", "am", {0: (0.5, 0.7)}))
    (tmp_path / "README.md").write_text("<!-- table: s-worst -->\n<!-- end -->\n")
    _write_readme(tmp_path)
    assert "| iid | **0.700** |  |  | 0.600 |" in (tmp_path / "README.md").read_text()


def test_a_comparison_names_the_strongest_other_loss_of_every_line(tmp_path: Path) -> None:
    sweep = SWEEP.replace(
        "    csq:", "    am 0.05: {{round.loss: {{name: anchor_margin}}}}\n    csq:"
    )
    lines = [
        *lines_of("iid", "am", {0: (0.5, 0.7), 1: (0.4, 0.6), 2: (0.6, 0.8)}),
        *lines_of("iid", "am 0.05", {0: (0.6, 0.8), 1: (0.5, 0.71), 2: (0.7, 0.9)}),
        *lines_of("iid", "csq", {0: (0.4, 0.6), 1: (0.3, 0.51), 2: (0.5, 0.7)}),
        *lines_of("iid", "sadh", {0: (0.3, 0.3), 1: (0.2, 0.2), 2: (0.3, 0.3)}),
        *lines_of("natural", "am", {0: (0.1, 0.1), 1: (0.2, 0.2), 2: (0.3, 0.3)}),
        *lines_of("natural", "csq", {0: (0.3, 0.3), 1: (0.4, 0.41), 2: (0.5, 0.5)}),
    ]
    rows_of(tmp_path, "map", lines, sweep)
    (tmp_path / "t.sweep.yaml").write_text((tmp_path / "s.sweep.yaml").read_text())  # not run
    ours = ("0.600 ± 0.100", "**0.702 ± 0.098 ▲**")
    assert comparison_rows(tmp_path) == [
        ("set", "partition", "am", "am 0.05", "strongest other", "its mAP", "chance"),
        ("s", "iid", *ours, "csq", "0.502 ± 0.098 ▼", "0.250"),
        ("s", "natural", "0.200 ± 0.100", "", "csq", "**0.402 ± 0.100 ▲**", "0.250"),
    ]


def test_where_all_axes_are_searched_the_last_one_has_the_columns(tmp_path: Path) -> None:
    everything = "[partition, loss, round.learning.learning_rate]"
    sweep = SWEEP.replace("[round.learning.learning_rate]", everything)
    lines = lines_of("iid", "am", {0: (0.5, 0.7)})
    assert rows_of(tmp_path, "map", lines, sweep) == [
        ("0.001", "chance"),
        ("**0.600**", "0.250"),
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "has other columns than the sweep's, or no rows"),
        (['"'], "is damaged"),
        (["iid,am,0.001,federated,zero,image,image,1,1,1,1,1,1"], "is damaged"),
        (lines_of("iid", "supcon", {0: (0.5, 0.7)}), "has loss supcon, which the grid has not"),
    ],
)
def test_figures_of_another_sweep_or_damaged_ones_are_refused(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=rf"s\.csv {message}.*; make it anew: make study STUDY="):
        rows_of(tmp_path, "map", lines)


def test_a_study_without_a_page_gets_one_with_a_place_for_each_sweep(tmp_path: Path) -> None:
    rows_of(tmp_path, "map", lines_of("iid", "am", {0: (0.5, 0.7)}))
    for _ in range(2):
        _write_readme(tmp_path)
        page = (tmp_path / "README.md").read_text()
        assert page.startswith(f"# {tmp_path.name}\n\n<!-- table: s -->\n\n|")
        assert page.count("0.600") == 1


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[pytest.mark.slow] if "main_comparison" in path.parts else [])
        for path in sorted((CONFIGS.parent / "simulations/studies").glob("*/*.sweep.yaml"))
    ],
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_every_study_of_the_project_can_be_read_and_has_a_table(path: Path) -> None:
    sweep = read_sweep(path)
    assert sweep.points
    assert bool(sweep.tests) == (sweep.settings.select is not None)
    marker = f"<!-- table: {path.name.removesuffix('.sweep.yaml')} -->"
    assert marker in (path.parent / "README.md").read_text(encoding="utf-8")
