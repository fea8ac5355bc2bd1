"""The points of a sweep file, and what `read_sweep` says of a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedhash.errors import ConfigurationError
from fedhash.rounds.settings import RoundSettings
from fedhash_sim.sweeps.points import Sweep, read_sweep

AGREEMENT = "name: three\nfindings: [no_finding, edema]\nmodalities: [image, report]\n"
TOWERS = "{image: {name: image_hog}, report: {name: report_ngrams}}"
ROUND = f"model: {{towers: {TOWERS}}}\nlearning: {{}}\nrounds: 1\n"
STUDY = "name: s\nagreement: agreement.yaml\nround: round.yaml\ndata: {kind: phantom}\nseeds: [3]\n"
HEAD = "name: lr\nstudy: study.yaml\n"
RATES = "  round.learning.learning_rate: [1.0e-3, 0.01]\n"
LOSSES = "  loss:\n    am: {round.loss: {margin: 0.1}}\n    csq: {round.loss: {name: csq}}\n"


def sweep(folder: Path, text: str, *changes: str) -> Sweep:
    files = {"agreement": AGREEMENT, "round": ROUND, "study": STUDY, "sweep": HEAD + text}
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(content, encoding="utf-8")
    return read_sweep(folder / "sweep.yaml", changes)


def problems(folder: Path, text: str, *changes: str) -> list[str]:
    """All that is wrong, each as `file:line: message`."""
    with pytest.raises(ConfigurationError) as caught:
        sweep(folder, text, *changes)
    return [str(each).removeprefix(f"{folder}/") for each in caught.value.problems]


def test_every_combination_is_a_point_in_the_order_of_the_file(tmp_path: Path) -> None:
    read = sweep(tmp_path, f"grid:\n{LOSSES}{RATES}seeds: [0, 1]\n", "round.rounds=7")
    assert [each.name for each in read.points] == [
        "loss=am,learning_rate=0.001",
        "loss=am,learning_rate=0.01",
        "loss=csq,learning_rate=0.001",
        "loss=csq,learning_rate=0.01",
    ]
    assert read.points[2].choices == {"loss": "csq", "round.learning.learning_rate": "0.001"}
    rounds = [each.study.round for each in read.points]
    assert [(each.loss.name, each.loss.margin) for each in rounds[1:3]] == [
        ("anchor_margin", 0.1),
        ("csq", None),
    ]
    assert [each.learning.learning_rate for each in rounds] == [0.001, 0.01] * 2
    assert {each.rounds for each in rounds} == {7}
    assert {each.study.settings.seeds for each in read.points} == {(0, 1)}
    assert read.tests == ()


def test_the_command_line_wins_over_the_seeds_of_the_file(tmp_path: Path) -> None:
    read = sweep(tmp_path, f"grid:\n{RATES}seeds: [0, 1]\n", "seeds=[5]")
    assert {each.study.settings.seeds for each in read.points} == {(5,)}


def test_a_search_asks_val_of_one_method_and_its_tests_ask_all(tmp_path: Path) -> None:
    select = "select: {over: [round.learning.learning_rate]}\n"
    read = sweep(tmp_path, f"grid:\n{RATES}{select}")
    search, test = read.points[1], read.tests[1]
    assert (search.name, test.name) == (
        "learning_rate=0.01,queries=val",
        "learning_rate=0.01,queries=test",
    )
    assert (search.queries, search.study.settings.methods) == ("val", ("federated",))
    assert (test.queries, test.study.settings.methods) == (
        "test",
        ("local", "federated", "central"),
    )
    assert search.study.round == test.study.round


def test_a_search_may_have_fewer_seeds_than_the_test(tmp_path: Path) -> None:
    select = "select: {over: [round.learning.learning_rate], seeds: [8]}\n"
    read = sweep(tmp_path, f"grid:\n{RATES}seeds: [0, 1]\n{select}")
    assert {each.study.settings.seeds for each in read.points} == {(8,)}
    assert {each.study.settings.seeds for each in read.tests} == {(0, 1)}
    (told,) = problems(tmp_path, f"grid:\n  seeds: [[0], [1]]\n{RATES}{select}")
    assert "grid.seeds sets seeds, and the search of select sets seeds" in told


def test_what_is_set_holds_for_every_point_and_the_grid_may_go_further(tmp_path: Path) -> None:
    fixed = "set: {round.rounds: 4, round.learning: {learning_rate: 0.5, local_steps: 3}}\n"
    read = sweep(tmp_path, f"{fixed}grid:\n{RATES}", "seeds=[6]")
    rounds = [each.study.round for each in read.points]
    assert [each.learning.learning_rate for each in rounds] == [0.001, 0.01]
    assert {(each.rounds, each.learning.local_steps) for each in rounds} == {(4, 3)}
    assert {each.rounds for each in points_of(tmp_path, fixed, "round.rounds=5")} == {5}
    (told,) = problems(tmp_path, f"set:\n  round.rounds: many\ngrid:\n{RATES}")
    assert told.startswith("sweep.yaml:3: set: ")
    assert "many" in told


def points_of(folder: Path, text: str, *changes: str) -> list[RoundSettings]:
    return [each.study.round for each in sweep(folder, f"{text}grid:\n{RATES}", *changes).points]


def test_the_inner_of_two_changes_counts_whatever_their_order(tmp_path: Path) -> None:
    grid = "grid:\n  round.loss.margin: [0.4]\n  loss: {am: {round.loss: {name: anchor_margin}}}\n"
    (point,) = sweep(tmp_path, grid).points
    assert point.study.round.loss.margin == 0.4


def test_equal_settings_share_a_folder(tmp_path: Path) -> None:
    grid = "grid:\n  a: {x: {}, y: {round.loss: {name: anchor_margin}}, z: {round.rounds: 2}}\n"
    read = sweep(tmp_path, grid)
    assert [(each.choices["a"], each.name) for each in read.points] == [
        ("x", "a=x"),
        ("y", "a=x"),
        ("z", "a=z"),
    ]


def test_a_choice_that_is_called_as_another_ones_folder_has_its_own(tmp_path: Path) -> None:
    (unsafe,) = sweep(tmp_path, "grid:\n  a: {a b: {round.rounds: 1}}\n").points
    folder = unsafe.name.removeprefix("a=")
    grid = f"grid:\n  a: {{a b: {{round.rounds: 1}}, {folder}: {{round.rounds: 2}}}}\n"
    one, other = sweep(tmp_path, grid).points
    assert (one.name, one.study.settings) == (unsafe.name, unsafe.study.settings)
    assert one.name != other.name


def test_no_folder_is_called_as_an_earlier_run_of_another_would_be(tmp_path: Path) -> None:
    grid = "grid:\n  a: {x: {round.rounds: 1}, x.previous: {round.rounds: 2}}\n"
    one, other = sweep(tmp_path, grid).points
    assert one.name == "a=x"
    assert not other.name.endswith(".previous")


def test_a_choice_that_cannot_be_printed_is_refused(tmp_path: Path) -> None:
    (told,) = problems(tmp_path, 'grid:\n  a: {"x\\ny": {round.rounds: 1}}\n')
    assert "grid.a has 'x\\ny', which cannot be printed" in told


def test_names_of_folders_are_safe_and_differ(tmp_path: Path) -> None:
    grid = (
        "grid:\n  partition: [{scheme: iid, sites: 3}, {scheme: iid, sites: 4}]\n"
        "  a.margin: {'../..': {round.loss.margin: 0.1}, '__ __': {round.loss.margin: 0.2}}\n"
        "  b.margin: {x: {}}\n"
    )
    names = [each.name for each in sweep(tmp_path, grid).points]
    assert len(set(names)) == 4
    assert not any("/" in each for each in names)
    assert all("a.margin=" in each and each.endswith("b.margin=x") for each in names)


def test_relative_paths_start_at_the_sweep_s_folder(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text(AGREEMENT.replace("three", "other"), encoding="utf-8")
    grid = "grid:\n  agreement: [other.yaml]\n  data: [{kind: manifest, manifest: m.csv}]\n"
    (point,) = sweep(tmp_path, grid).points
    assert point.study.agreement.name == "other"
    assert point.study.settings.data.model_dump()["manifest"] == tmp_path / "m.csv"


def test_all_impossible_points_are_told_at_once_at_the_choices_that_make_them(
    tmp_path: Path,
) -> None:
    grid = (
        "grid:\n"
        "  round.learning.learning_rate:\n  - 0.01\n  - -1\n"
        "  loss:\n    am: {}\n    csq: {round.loss: {name: csq, margin: 0.1}}\n"
        "  partition.scheme: [iid]\n"
        "  round.learning.momentums: [0.5]\n"
    )
    found = sorted(problems(tmp_path, grid), key=lambda each: int(each.split(":")[1]))
    for told, (start, reason) in zip(
        found,
        [
            ("6: grid.round.learning.learning_rate = -1: ", "must be greater than or equal to"),
            ("9: grid.loss = csq: ", "the loss csq does not read it"),
            ("10: grid.partition.scheme = iid: ", "needs a number of sites"),
            ("11: grid.round.learning.momentums = 0.5: ", 'did you mean "momentum"?'),
        ],
        strict=True,
    ):
        assert told.startswith(f"sweep.yaml:{start}")
        assert reason in told


def test_what_only_several_choices_make_together_names_them_all(tmp_path: Path) -> None:
    grid = "grid:\n  round.loss.margin: [0.1]\n  round.loss.name: [csq]\n"
    (told,) = problems(tmp_path, grid)
    assert told.startswith("sweep.yaml:3: round.loss.margin = 0.1, round.loss.name = csq: ")
    assert "the loss csq does not read it" in told


def test_what_is_wrong_with_the_study_itself_keeps_its_own_line(tmp_path: Path) -> None:
    (told,) = problems(tmp_path, f"grid:\n{RATES}", "round.round=3")
    assert told.startswith('--set: unknown key "round"')


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("grid: {}\n", '3: "grid" must have at least 1 item'),
        ("grid:\n  seeds: []\n", '4: "grid.seeds" must have at least 1 item'),
        ("grid:\n  round.rounds: 3\n", '4: "grid.round.rounds" must be a list or a mapping'),
        ("grid:\n  round.rounds: [3, 4, 3]\n", "4: grid.round.rounds has 3 more than once"),
        ("grid:\n  queries: {a: {}}\n", "4: grid.queries: a column of the tables has this name"),
        ("grid:\n  a: {b: {c..d: 1}}\n", "4: grid.a: 'c..d' is no key; write a.b.c"),
        (
            "grid:\n  round.rounds: [1]\n  a: {x: {round.rounds: 2}}\n",
            "4: grid.round.rounds sets round.rounds, and so does another axis",
        ),
        (
            f"grid:\n  seeds: [{', '.join(f'[{n}]' for n in range(501))}]\n",
            "3: grid has 501 points; at most 500 are run",
        ),
        (
            f"grid:\n{RATES}select: {{over: [learning_rate]}}\n",
            "5: select.over has learning_rate, no axis of grid; did you mean",
        ),
        (
            f"grid:\n{RATES}select: {{over: [round.learning.learning_rate], queries: test}}\n",
            "5: \"select.queries\" must be 'val'; found text 'test'",
        ),
        (
            f"grid:\n{RATES}  methods: [[local]]\nselect: {{over: [methods]}}\n",
            "5: grid.methods sets methods, and the search of select sets methods; leave",
        ),
        (
            f"seeds: [0, 0]\ngrid:\n{RATES}",
            '3: "seeds": holds a seed twice; name each once',
        ),
        (
            f"set: {{seeds: [5]}}\nseeds: [0, 1]\ngrid:\n{RATES}",
            "3: set has seeds, and the sweep's key seeds says it for every point; leave one",
        ),
        (
            f"set:\n  round.learning.learning_rate: 0.5\ngrid:\n{RATES}",
            "4: set has round.learning.learning_rate, and grid.round.learning.learning_rate says",
        ),
        (
            "set:\n  round.loss.name: csq\ngrid:\n  a: {x: {round.loss: {name: dpsh}}}\n",
            "4: set has round.loss.name, and grid.a says it for every point; leave one",
        ),
        (
            (
                "set:\n  evaluation.queries: val\n"
                "grid: {round.rounds: [3]}\nselect: {over: [round.rounds]}\n"
            ),
            "4: set has evaluation.queries, and select, which asks val and then test, says",
        ),
        (
            f"grid:\n{RATES}select: {{over: [round.learning.learning_rate], method: start}}\n",
            "5: select.method is start; the study runs local, federated, central",
        ),
    ],
)
def test_a_wrong_sweep_is_refused_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    assert any(each.startswith(f"sweep.yaml:{expected}") for each in problems(tmp_path, text)), (
        problems(tmp_path, text)
    )


def test_a_value_of_the_command_line_that_the_grid_sets_is_refused(tmp_path: Path) -> None:
    (told,) = problems(tmp_path, f"grid:\n{RATES}", "round.learning.learning_rate=0.5")
    assert told.startswith("sweep.yaml:4: grid.round.learning.learning_rate sets")
    assert "--set sets round.learning.learning_rate; leave one of them out" in told


def test_a_split_of_the_command_line_that_a_search_would_not_ask_is_refused(tmp_path: Path) -> None:
    select = "select:\n  over: [round.learning.learning_rate]\n"
    (told,) = problems(tmp_path, f"grid:\n{RATES}{select}", "evaluation.queries=val")
    assert told.startswith("sweep.yaml:5: --set sets evaluation.queries, and select asks val")


def test_a_search_in_a_direction_that_is_not_asked_is_refused(tmp_path: Path) -> None:
    select = (
        "select:\n  over: [round.learning.learning_rate]\n"
        "  direction: {query: signal, target: image}\n"
    )
    (told,) = problems(tmp_path, f"grid:\n{RATES}{select}")
    assert told.startswith("sweep.yaml:7: select.direction: the study asks image -> image, image")
