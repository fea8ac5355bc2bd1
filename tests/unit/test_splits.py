"""Splits: disjoint by patient, stable, and near their shares."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhash.data import InMemory, Study, published_split, split_of_patient, split_patients
from fedhash.errors import DataError

SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}


def study(number: int, patient: str, split: str | None = None) -> Study:
    attributes = {} if split is None else {"split": split}
    contents = {"report": InMemory("text")}
    return Study(f"s{number}", patient, contents, frozenset({"a"}), attributes=attributes)


@given(patients=st.lists(st.sampled_from([f"p{n}" for n in range(30)])), seed=st.integers())
def test_every_study_stands_in_one_split_and_patients_in_one_too(
    patients: list[str], seed: int
) -> None:
    studies = [study(number, patient) for number, patient in enumerate(patients)]
    splits = split_patients(studies, SHARES, seed)
    assert list(splits) == list(SHARES)
    found = sorted(member.study_id for members in splits.values() for member in members)
    assert found == sorted(member.study_id for member in studies)
    of_patient = {member.patient_id: name for name, ms in splits.items() for member in ms}
    for name, members in splits.items():
        assert all(of_patient[member.patient_id] == name for member in members)
        numbers = [int(member.study_id[1:]) for member in members]
        assert numbers == sorted(numbers)


@given(patient=st.text(), seed=st.integers(), others=st.lists(st.text(), max_size=5))
def test_a_patient_stays_whoever_else_is_there(patient: str, seed: int, others: list[str]) -> None:
    alone = split_of_patient(patient, SHARES, seed)
    studies = [study(number, name) for number, name in enumerate([*others, patient])]
    assert studies[-1] in split_patients(studies, SHARES, seed)[alone]


def test_shares_are_met_on_average() -> None:
    names = [split_of_patient(f"p{number}", SHARES, seed=0) for number in range(20_000)]
    for split, share in SHARES.items():
        # Four standard deviations of a binomial share.
        assert abs(names.count(split) / 20_000 - share) < 4 * (share * (1 - share) / 20_000) ** 0.5


def test_the_split_of_a_patient_never_changes_between_versions() -> None:
    """A site's held-out patients must stay held out after an upgrade."""
    found = [split_of_patient(name, SHARES, seed=0) for name in ("p0", "p22", "p24")]
    assert found == ["train", "val", "test"]


def test_another_seed_draws_another_split() -> None:
    draws = [[split_of_patient(f"p{n}", SHARES, seed) for n in range(200)] for seed in (0, 1)]
    assert draws[0] != draws[1]


def test_a_share_of_nothing_gets_nobody() -> None:
    studies = [study(number, f"p{number}") for number in range(300)]
    splits = split_patients(studies, {"empty": 0.0, "all": 1.0}, seed=0)
    assert (len(splits["empty"]), len(splits["all"])) == (0, 300)


@pytest.mark.parametrize("shares", [{}, {"a": 0.5}, {"a": 1.2, "b": -0.2}, {"a": float("nan")}])
def test_shares_that_do_not_sum_to_one_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(
        DataError, match=r"the split's shares are .*; make each 0 to 1 and their sum 1"
    ):
        split_of_patient("p1", shares, seed=0)


def test_a_published_split_is_taken_as_it_is() -> None:
    first, second, third = study(1, "p1", "train"), study(2, "p2", "test"), study(3, "p1", "train")
    assert published_split([first, second, third]) == {"train": (first, third), "test": (second,)}


def test_a_patient_in_two_published_splits_is_refused() -> None:
    with pytest.raises(DataError, match="patient p1 stands in the splits 'train' and 'test'"):
        published_split([study(1, "p1", "train"), study(2, "p1", "test")])


def test_a_study_without_a_published_split_is_refused() -> None:
    with pytest.raises(DataError, match="study s1 has no attribute 'split'; fill the column"):
        published_split([study(1, "p1")])
