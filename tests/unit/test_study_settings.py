"""What `read_study` says of a wrong study, and of the two files that it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedhash.errors import ConfigurationError
from fedhash_sim.settings import read_study

AGREEMENT = """\
name: three
findings: [no_finding, edema]
modalities: [image, report]
"""

ROUND = """\
model:
  towers:
    image:
      name: image_hog
      options:
        cell_px: 8
learning:
  local_steps: 2
rounds: 1
"""

STUDY = """\
name: small
agreement: agreement.yaml
round: round.yaml
data: {kind: phantom}
seeds: [0]
"""


def problems(
    folder: Path,
    *overrides: str,
    study: str = STUDY,
    agreement: str = AGREEMENT,
    rounds: str = ROUND,
) -> list[str]:
    """All that is wrong, each as `file:line: message`; the files lie in `folder`."""
    for name, text in (("study", study), ("agreement", agreement), ("round", rounds)):
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        read_study(folder / "study.yaml", overrides)
    return [str(each).removeprefix(f"{folder}/") for each in caught.value.problems]


@pytest.mark.parametrize(
    ("more", "start"),
    [
        ("methods:\n- local\n- local\n", '6: "methods": must hold at least one entry'),
        ("partition:\n  scheme: natural\n  sites: 3\n", '8: "partition.sites": the scheme natural'),
        ("partition:\n  scheme: iid\n", '6: "partition.sites": the scheme iid needs'),
        ("partition:\n  scheme: shard\n  sites: 3\n", '6: "partition.shards_per_site": it'),
        ("partition:\n  scheme: iid\n  sites: 3\n  alpha: 1\n", '9: "partition.alpha": it belongs'),
        (
            "partition:\n  scheme: dirichlet\n  sites: 3\n  alpha: 1.0e+308\n",
            '9: "partition.alpha" must be less than or equal to 1000000',
        ),
        ("splits:\n  val: 0.5\n  test: 0.5\n", '8: "splits.test": val + test must leave'),
        ("splits:\n  val: 0.9\n", '6: "splits.test": val + test must leave'),
    ],
)
def test_contradictions_have_their_key_and_line_beside_other_mistakes(
    tmp_path: Path, more: str, start: str
) -> None:
    study = STUDY.replace("[0]", "[0, 0]").replace("small", "a b") + more
    name, *others = problems(tmp_path, study=study)
    assert name.startswith('study.yaml:1: "name" must match')
    assert len(others) == 2
    assert any('study.yaml:5: "seeds": must hold at least one' in each for each in others)
    assert any(each.startswith(f"study.yaml:{start}") for each in others)


def test_a_site_cannot_see_more_findings_than_there_are(tmp_path: Path) -> None:
    partition = "partition:\n  scheme: pathological\n  sites: 3\n  findings_per_site: 99\n"
    (problem,) = problems(tmp_path, study=STUDY + partition)
    assert problem.startswith("study.yaml:9: partition.findings_per_site: 99, of ")


@pytest.mark.parametrize(
    ("old", "new", "start"),
    [
        ("  local_steps: 2", "  local_steps: 2\n  local_epochs: 1", '9: "learning.local_epochs": '),
        (
            "  local_steps: 2",
            "  local_steps: null",
            '7: "learning.local_epochs": local_steps is None',
        ),
        ("  local_steps: 2", "  momentum: 0.9", '8: "learning.momentum": momentum belongs to sgd'),
        ("name: image_hog", "name: image_hogg", "4: the tower 'image_hogg' was asked for"),
        ("cell_px: 8", "cell_px: 10", "6: option cell_px of tower image_hog: "),
        ("cell_px: 8", "cells: 8", "6: option cells of tower image_hog: "),
        ("local_steps: 2", "local_steps: 5000", "8: learning.local_steps is 5000, the agreement"),
    ],
)
def test_mistakes_of_a_round_have_their_line(
    tmp_path: Path, old: str, new: str, start: str
) -> None:
    (problem,) = problems(tmp_path, rounds=ROUND.replace(old, new))
    assert problem.startswith(f"round.yaml:{start}")


def test_a_misspelt_tower_gets_the_nearest_one(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, rounds=ROUND.replace("image_hog", "image_hogg"))
    assert problem.endswith('; did you mean "image_hog"?')
    (problem,) = problems(tmp_path, "round.model.towers.image.name=image_hogg")
    assert problem.startswith("--set: the tower 'image_hogg'")


@pytest.mark.parametrize(
    ("change", "line", "message"),
    [
        ("learning.lr: 1", 9, 'unknown key "learning.lr"'),
        ("learning.local_steps: 5000", 9, "learning.local_steps is 5000, the agreement's"),
        ("model.towers.image.options.cell_px: 16", 7, "changes the model"),
    ],
)
def test_mistakes_of_one_method_have_their_line(
    tmp_path: Path, change: str, line: int, message: str
) -> None:
    study = f"{STUDY}method_settings:\n  central:\n    rounds: 2\n    {change}\n"
    (problem,) = problems(tmp_path, study=study)
    assert problem.startswith(f"study.yaml:{line}: method_settings.central: {message}")


@pytest.mark.parametrize(
    ("sites", "message"),
    [(2, "2 sites are fewer than the agreement's smallest_cohort, 3"), (900, "no graph of 900")],
)
def test_a_number_of_sites_that_no_round_can_have_has_its_line(
    tmp_path: Path, sites: int, message: str
) -> None:
    study = f"{STUDY}partition:\n  scheme: iid\n  sites: {sites}\n"
    (problem,) = problems(tmp_path, study=study)
    assert problem.startswith(f"study.yaml:8: partition.sites: {message}")
    read_study(tmp_path / "study.yaml", ["methods=[local, central]"])


def test_a_tower_that_draws_at_random_is_refused_for_the_vectorised_engine(tmp_path: Path) -> None:
    rounds = ROUND.replace("cell_px: 8", "dropout: 0.5") + "aggregation: plain\n"
    message = "the engine vectorised has no towers with dropout .*; set engine: inprocess"
    told = problems(tmp_path, study=f"{STUDY}engine: vectorised\n", rounds=rounds)
    for method, each in zip(("local", "federated", "central"), told, strict=True):
        assert re.match(f"study.yaml:6: {method}: {message}", each)
    (mistake,) = problems(tmp_path, study=STUDY, rounds=ROUND.replace("8", "7"))
    assert mistake.startswith("round.yaml:6: option cell_px")
    read_study(tmp_path / "study.yaml", ["round.model.towers.image.options.cell_px=8"])


def test_findings_that_do_not_fit_the_bits_have_the_agreement_s_line(tmp_path: Path) -> None:
    many = AGREEMENT.replace("[no_finding, edema]", str([f"f{n}" for n in range(400)]))
    message = "400 findings in 16 bits come as near as . bits, at least 4 are needed; raise code_"
    (problem,) = problems(tmp_path, agreement=f"{many}code_bits: 16\n")
    assert re.match(f"agreement.yaml:4: {message}", problem)
    (problem,) = problems(tmp_path, "agreement.code_bits=16", agreement=many)
    assert re.match(f"--set: {message}", problem)
    read_study(tmp_path / "study.yaml", ["agreement.code_bits=64"])
    own = "round.learning.normalisation_layers=own"
    for changes in ((), (own,)):
        (problem,) = problems(tmp_path, *changes, agreement=f"{AGREEMENT}anchors_version: 2\n")
        assert problem.startswith("agreement.yaml:4: anchors_version 2 is unknown")


def test_an_unknown_direction_has_its_line(tmp_path: Path) -> None:
    study = f"{STUDY}evaluation:\n  directions:\n  - query: image\n    target: mri\n"
    (problem,) = problems(tmp_path, study=study)
    assert problem.startswith("study.yaml:9: evaluation.directions asks for 'mri'")


@pytest.mark.parametrize(
    ("more", "start"),
    [
        ("  shares:\n    image: 0.5\n    mri: 0.5\n", "12: missing_modalities names 'mri'"),
        ("  shares:\n    image: 0.1\n", "11: missing_modalities.shares.image is 0.1, which of 3"),
        ("  shares: {image: 0.5, report: 0.5}\n", "10: missing_modalities.shares takes 4 modal"),
        ("  sites:\n    site-9: [image]\n", "11: missing_modalities.sites names 'site-9', which"),
        ("  sites:\n    site-00: [image, report]\n", "11: missing_modalities.sites leaves nothing"),
    ],
)
def test_modalities_that_cannot_be_missing_have_their_line(
    tmp_path: Path, more: str, start: str
) -> None:
    study = f"{STUDY}partition:\n  scheme: iid\n  sites: 3\nmissing_modalities:\n{more}"
    both = "round.model.towers.report={name: report_ngrams}"
    (problem,) = problems(tmp_path, both, study=study)
    assert problem.startswith(f"study.yaml:{start}")


def test_looks_that_no_content_can_have_have_their_line(tmp_path: Path) -> None:
    shift = "feature_shift:\n  strength: 0.5\n  modalities:\n  - image\n  - imag\n"
    (problem,) = problems(tmp_path, study=STUDY + shift)
    assert problem.startswith("study.yaml:10: feature_shift.modalities names 'imag', which has no")
    (problem,) = problems(tmp_path, "feature_shift={strength: 1, modalities: []}")
    assert problem.startswith('--set: "feature_shift.modalities": holds none; name one')


def test_all_files_and_overrides_are_checked_at_once(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        *("nonsense", "seedz=[0]", "agreement.code_bits=12", "round.roundz=1"),
        study=STUDY + "seeeds: [1]\n",
        agreement=AGREEMENT + "smalest_cohort: 2\n",
        rounds=ROUND + "timeout: 1\n",
    )
    assert [each.partition(";")[0] for each in found] == [
        'study.yaml:6: unknown key "seeeds"',
        "--set: 'nonsense' is no override",
        '--set: unknown key "seedz"',
        'agreement.yaml:4: unknown key "smalest_cohort"',
        '--set: "code_bits" must be a multiple of 8',
        'round.yaml:10: unknown key "timeout"',
        '--set: unknown key "roundz"',
    ]


def test_a_study_that_names_no_files_is_told_alone(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, study=STUDY.replace("round: round.yaml\n", ""))
    assert problem.startswith('study.yaml:1: missing key "round"')
