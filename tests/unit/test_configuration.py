"""Settings: what is accepted, what every mistake is answered with, and dumps that read back."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Literal, NewType

import pytest
from pydantic import Field, ValidationError, field_validator, model_validator

import fedhash.configuration
from fedhash.configuration import (
    Settings,
    did_you_mean,
    override,
    read_settings,
)
from fedhash.errors import ConfigurationError


class Speed(Enum):
    FAST = "fast"
    SLOW = "slow"


class Convnet(Settings):
    name: Literal["convnet"]
    width: int = Field(default=16, gt=0)
    weights: Path | None = None


class Hog(Settings):
    name: Literal["hog"]
    cells: tuple[int, int] = (8, 8)


Tower = Annotated[Convnet | Hog, Field(discriminator="name")]


class Learning(Settings):
    learning_rate: float = 1e-3
    local_steps: int | Literal["all"] | None = None
    speed: Speed = Speed.FAST

    @field_validator("learning_rate")
    @classmethod
    def _check_rate(cls, rate: float) -> float:
        if rate > 1:
            raise ValueError(f"a rate of {rate} diverges; stay below 1")
        return rate


class Study(Settings):
    title: str
    rounds: int = Field(ge=1)
    plots: bool = True
    manifest: Path = Path("/data/manifest.csv")
    extra: tuple[Path, ...] = ()
    towers: dict[str, Tower] = {}  # noqa: RUF012 - pydantic copies defaults
    chain: tuple[Tower, ...] = ()
    learning: Learning = Learning()
    note: str | Path | None = None

    @model_validator(mode="after")
    def _check_chain(self) -> Study:
        if len(self.chain) > self.rounds:
            raise ValueError("the chain is longer than the rounds; shorten it")
        return self


GOOD = """\
# a comment
title: first
rounds: 3
"""


@pytest.fixture
def write(tmp_path: Path):
    def write_file(text: str, name: str = "study.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def complaints(path: Path, overrides: list[str] | None = None) -> list[str]:
    """The problems of a study as `line: message`."""
    with pytest.raises(ConfigurationError) as caught:
        read_settings(path, Study, overrides or [])
    assert {p.file for p in caught.value.problems} <= {path, Path("--set")}
    return [f"{problem.line}: {problem.message}" for problem in caught.value.problems]


def test_public_names():
    assert fedhash.configuration.__all__ == [
        "KeyPath",
        "Settings",
        "did_you_mean",
        "gathered",
        "json_schema",
        "override",
        "problem_at",
        "read_settings",
        "resolved",
        "write_schemas",
    ]


def test_an_override_of_a_file_starts_its_paths_at_that_file_s_folder(tmp_path):
    convnet = {"name": "convnet", "weights": "best.pt"}
    asked = override("tower", convnet, _OneTower, tmp_path)
    assert asked == f'tower={{"name": "convnet", "weights": "{tmp_path}/best.pt"}}'
    assert override("tower.name", "a/b", _OneTower, tmp_path) == 'tower.name="a/b"'


class _OneTower(Settings):
    tower: Tower


def test_reads_every_kind_of_value(write):
    path = write(
        GOOD
        + """
plots: false
extra: [/a/b]
towers:
  image: {name: hog, cells: [4, 5]}
  scan:
    name: convnet
chain: [{name: hog}]
learning:
  learning_rate: 1e-4   # YAML 1.1 reads this as text
  local_steps: all
  speed: slow
"""
    )
    assert read_settings(path, Study) == Study(
        title="first",
        rounds=3,
        plots=False,
        extra=(Path("/a/b"),),
        towers={"image": Hog(name="hog", cells=(4, 5)), "scan": Convnet(name="convnet")},
        chain=(Hog(name="hog"),),
        learning=Learning(learning_rate=1e-4, local_steps="all", speed=Speed.SLOW),
    )


def test_settings_are_frozen_closed_and_strict():
    study = Study(title="a", rounds=1)
    with pytest.raises(ValidationError, match="frozen"):
        study.rounds = 2
    for wrong in [{"rounds": "3"}, {"rounds": True}, {"rounds": 1, "x": 1}, {"rounds": 1.0}]:
        with pytest.raises(ValidationError, match=r"rounds|x"):
            Study(title="a", **wrong)
    with pytest.raises(ValidationError, match="finite"):
        Learning(learning_rate=float("nan"))
    assert type(Learning(learning_rate=1).learning_rate) is float


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rounds: '3'", "3: \"rounds\" must be a whole number; found text '3'"),
        ("rounds: 3.0", '3: "rounds" must be a whole number; found 3.0'),
        ("rounds: true", '3: "rounds" must be a whole number; found true'),
        ("rounds:", '3: "rounds" must be a whole number; found nothing (null)'),
        ("rounds: 0", '3: "rounds" must be greater than or equal to 1; found 0'),
        ("rounds: 0x10", "3: \"rounds\" must be a whole number; found text '0x10'"),
        ("round: 3", '3: unknown key "round"; did you mean "rounds"?'),
        ("rounds: 3\nplots: yes", "4: \"plots\" must be true or false; found text 'yes'"),
        ("rounds: 3\nextra: a", "4: \"extra\" must be a list; found text 'a'"),
        ("rounds: 3\nextra:\n- a\n- 7", '6: "extra.1" must be a path; found 7'),
        ("rounds: 3\nmanifest: {a: 1}", '4: "manifest" must be a path; found a mapping of 1'),
        ("rounds: 3\nnote: 4", '4: "note" must be text or a path or null; found 4'),
        ("rounds: 3\nlearning: 4", '4: "learning" must be a mapping of keys to values; found 4'),
        (
            "rounds: 3\nlearning:\n  learning_rate: high",
            "5: \"learning.learning_rate\" must be a number; found text 'high'",
        ),
        (
            "rounds: 3\nlearning:\n  learning_rate: 1e999",
            '5: "learning.learning_rate" must be a finite number; found inf',
        ),
        (
            "rounds: 3\nlearning:\n  learning_rate: 2",
            '5: "learning.learning_rate": a rate of 2.0 diverges; stay below 1',
        ),
        (
            "rounds: 3\nlearning:\n  local_steps: al",
            (
                "5: \"learning.local_steps\" must be a whole number or 'all' or null; "
                "found text 'al'; did you mean \"all\"?"
            ),
        ),
        (
            "rounds: 3\nlearning:\n  speed: fats",
            (
                "5: \"learning.speed\" must be 'fast' or 'slow'; found text 'fats'; "
                'did you mean "fast"?'
            ),
        ),
        (
            "rounds: 3\nlearning: {zzz: 1}",
            '4: unknown key "learning.zzz"; valid here: learning_rate, local_steps, speed',
        ),
        (
            "rounds: 1\nchain: [{name: hog}, {name: hog}]",
            "2: the chain is longer than the rounds; shorten it",
        ),
    ],
)
def test_one_mistake(write, text, expected):
    messages = complaints(write(f"# a comment\ntitle: first\n{text}\n"))
    assert any(message.startswith(expected) for message in messages), messages


@pytest.mark.parametrize(
    ("tower", "expected"),
    [
        (
            "name: hgo",
            (
                "6: \"towers.image.name\" must be 'convnet' or 'hog'; found text 'hgo'; "
                'did you mean "hog"?'
            ),
        ),
        ("cells: [1, 2]", "5: missing key \"towers.image.name\"; add it, expected 'convnet' or"),
        ("name: hog\n    width: 3", '7: unknown key "towers.image.width"; valid here: name, cells'),
        (
            "name: convnet\n    widht: 3",
            '7: unknown key "towers.image.widht"; did you mean "width"',
        ),
        (
            "name: convnet\n    width: -3",
            '7: "towers.image.width" must be greater than 0; found -3',
        ),
        ("name: convnet\n    weights: 3", '7: "towers.image.weights" must be a path or null; '),
        (
            "name: hog\n    cells: [1]",
            '7: missing entry "towers.image.cells.1"; add it, expected a w',
        ),
        ("name: hog\n    cells: [1, 2, 3]", '7: "towers.image.cells" must have at most 2 items; '),
        ("name: hog\n    cells: [1, x]", '7: "towers.image.cells.1" must be a whole number; found'),
        ("- 3", '5: "towers.image" must be a mapping of keys to values; found a list of 1'),
        ("null", '5: "towers.image" must be a mapping of keys to values; found nothing'),
    ],
)
def test_mistakes_in_a_discriminated_union(write, tower, expected):
    (message,) = complaints(write(GOOD + f"towers:\n  image:\n    {tower}\n"))
    assert message.startswith(expected)


def test_all_mistakes_at_once_in_the_order_of_lines(write):
    path = write(
        """\
titel: first
rounds: -1
rounds: 2
towers:
  image: {name: resnet}
chain:
  - name: hog
  - name: convnet
    width: wide
plots: 1
"""
    )
    assert complaints(path, ["learning.speed=3", "extra=5"]) == [
        '1: missing key "title"; add it, expected text',
        '1: unknown key "titel"; did you mean "title"?',
        '2: "rounds" must be greater than or equal to 1; found -1',
        '3: key "rounds" stands on line 2 already; keep one',
        "5: \"towers.image.name\" must be 'convnet' or 'hog'; found text 'resnet'",
        "9: \"chain.1.width\" must be a whole number; found text 'wide'",
        '10: "plots" must be true or false; found 1',
        'None: "extra" must be a list; found 5',
        "None: \"learning.speed\" must be 'fast' or 'slow'; found 3",
    ]


def test_the_error_prints_file_and_line(write):
    path = write("title: a\nrounds: x\n")
    with pytest.raises(ConfigurationError, match=f'{path}:2: "rounds" must be a whole number'):
        read_settings(path, Study)


def test_a_long_text_is_cut_in_the_message(write):
    (message,) = complaints(write(f"title: a\nrounds: {'x' * 5000}\n"))
    assert message == f"2: \"rounds\" must be a whole number; found text '{'x' * 60}...'"


def test_did_you_mean_lists_at_most_twenty():
    assert did_you_mean("", []) == "valid here: nothing"
    assert did_you_mean("zzz", ["a", "b"]) == "valid here: a, b"
    assert did_you_mean("zzz", map(str, range(1000))).endswith("18, 19, ...")


class Named(Settings):
    by_name: dict[Literal["image", "report"], int]


def test_a_wrong_key_of_a_mapping_is_named(write):
    path = write("by_name:\n  image: 1\n  reprot: 2\n")
    with pytest.raises(ConfigurationError) as caught:
        read_settings(path, Named)
    (problem,) = caught.value.problems
    assert problem.line == 3
    assert problem.message == "\"by_name.reprot\" must be 'image' or 'report'; found text 'reprot'"


Seconds = NewType("Seconds", float)


class Shares(Settings):
    val: float = Field(default=0.1, ge=0)
    test: float = Field(default=0.2, ge=0)

    @model_validator(mode="after")
    def _something_is_left(self) -> Shares:
        if self.val + self.test >= 1:
            raise ValueError("val + test must stay below 1")
        return self


class Unions(Settings):
    many: dict[str, Tower] | tuple[Tower, ...] | Literal["none"] = "none"
    wait_s: Seconds | None = None
    splits: Literal["published"] | Shares = "published"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("many:\n  a:\n    name: hog\n    width: 3", '4: unknown key "many.a.width"; valid here'),
        ("many:\n- {name: hog}\n- name: hogg", "3: \"many.1.name\" must be 'convnet' or 'hog'"),
        ("many: 3", "1: \"many\" must be a mapping of keys to values or a list or 'none'; found 3"),
        (
            "many: non",
            "1: \"many\" must be a mapping of keys to values or a list or 'none'; found t",
        ),
        ("wait_s: long", "1: \"wait_s\" must be a valid number; found text 'long'"),
        ('"\\ud800": 1', '1: unknown key "\\ud800"; valid here: many, wait_s'),
        ("splits:\n  val: nan", "2: \"splits.val\" must be a number; found text 'nan'"),
        ("splits:\n  val: 1e999", '2: "splits.val" must be a finite number; found inf'),
        ("splits:\n  vall: 1", '2: unknown key "splits.vall"; did you mean "val"?'),
        ("splits: {val: 0.9}", '1: "splits": val + test must stay below 1'),
        ("splits: publish", "1: \"splits\" must be 'published' or a mapping of keys to values; "),
    ],
)
def test_mistakes_in_a_union_of_containers(write, text, expected):
    path = write(text)
    with pytest.raises(ConfigurationError) as caught:
        read_settings(path, Unions)
    messages = [f"{problem.line}: {problem.message}" for problem in caught.value.problems]
    assert messages[0].startswith(expected)


# --- overrides


def test_overrides_replace_and_add_values(write):
    path = write(GOOD + "extra: [/a, /b]\nlearning:\n")
    study = read_settings(
        path,
        Study,
        [
            "rounds=40",
            "title=a=b",
            "extra.1=/c",
            "learning.learning_rate=1e-2",
            "towers.image={name: hog}",
            "towers.image.cells=[1, 2]",
            "towers.scan.name=convnet",
            "note=",
        ],
    )
    assert (study.rounds, study.title, study.note) == (40, "a=b", None)
    assert study.extra == (Path("/a"), Path("/c"))
    assert study.learning.learning_rate == 0.01
    assert study.towers == {"image": Hog(name="hog", cells=(1, 2)), "scan": Convnet(name="convnet")}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("rounds", "'rounds' is no override; write key.path=value"),
        ("=3", "'=3' is no override"),
        ("a..b=3", "'a..b=3' is no override"),
        ("rounds=three", "\"rounds\" must be a whole number; found text 'three'"),
        ("runds=3", 'unknown key "runds"; did you mean "rounds"?'),
        ("rounds.x=3", 'in \'rounds.x=3\': "rounds" is 3 and has no entry "x"'),
        ("extra.2=/c", 'in \'extra.2=/c\': "extra" is a list of 2 and has no entry "2"'),
        ("extra.-1=/c", 'in \'extra.-1=/c\': "extra" is a list of 2 and has no entry "-1"'),
        ("rounds=[", "in 'rounds=[': not valid YAML"),
        ("rounds=!!python/name:os.x 3", "in 'rounds=!!python/name:os.x 3': tag !!python/name:os.x"),
        ("learning={speed: a, speed: b}", "in 'learning={speed: a, speed: b}': key \"speed\" stan"),
        ("learning={spee: fast}", 'unknown key "learning.spee"; did you mean "speed"?'),
        ("towers.image.cells=[1, 2]", 'missing key "towers.image.name"'),
    ],
)
def test_a_wrong_override(write, override, expected):
    (message,) = complaints(write(GOOD + "extra: [/a, /b]\n"), [override])
    assert message.startswith("None: " + expected)


# --- paths


def test_relative_paths_start_at_the_file_and_on_the_command_line_here(
    write, tmp_path, monkeypatch
):
    path = write(
        GOOD
        + "manifest: ../data/m.csv\nextra: [one, /two]\nnote: text\n"
        + "towers: {image: {name: convnet, weights: w.bin}}\n",
        name="configs/study.yaml",
    )
    here = tmp_path / "elsewhere"
    here.mkdir()
    monkeypatch.chdir(here)
    relative = Path("../configs/study.yaml")
    for file in (path, relative):
        study = read_settings(file, Study)
        assert study.manifest == tmp_path / "data/m.csv"
        assert study.extra == (tmp_path / "configs/one", Path("/two"))
        assert study.towers["image"].weights == tmp_path / "configs/w.bin"
        assert study.note == "text"
    study = read_settings(path, Study, ["extra.0=mine", "manifest=m.csv"])
    assert study.extra == (here / "mine", Path("/two"))
    assert study.manifest == here / "m.csv"
