from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhash.data.study import InMemory, Study
from fedhash.errors import DataError
from fedhash_sim.partitions import POOLED_SITE, partition_patients
from fedhash_sim.settings import Partition


def studies_of(patients: int, seed: int = 0) -> list[Study]:
    rng = np.random.default_rng(seed)
    return [
        Study(
            f"study-{patient}-{number}",
            f"patient-{patient}",
            {"report": InMemory("x")},
            frozenset({rng.choice(["no_finding", "edema", "nodule"], p=[0.6, 0.3, 0.1])}),
            attributes={"site": f"hospital-{patient % 3}"},
        )
        for patient in range(patients)
        for number in range(int(rng.integers(1, 4)))
    ]


@given(
    patients=st.integers(40, 80),
    sites=st.integers(2, 6),
    alpha=st.sampled_from([None, 0.3, 1.0, 100.0]),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=15, deadline=None)
def test_every_study_has_one_site_and_every_patient_too(
    patients: int, sites: int, alpha: float | None, seed: int
) -> None:
    studies = studies_of(patients)
    partition = Partition(scheme="dirichlet" if alpha else "iid", sites=sites, alpha=alpha)
    dealt = partition_patients(studies, partition, seed)
    assert len(dealt) == sites
    assert list(dealt) == sorted(dealt)
    assert sorted(s.study_id for site in dealt.values() for s in site) == sorted(
        s.study_id for s in studies
    )
    homes = {(s.patient_id, site) for site, held in dealt.items() for s in held}
    assert len(homes) == patients
    assert dealt == partition_patients(studies, partition, seed)


def test_another_seed_deals_otherwise() -> None:
    studies = studies_of(60)
    partition = Partition(scheme="iid", sites=3)
    assert partition_patients(studies, partition, 0) != partition_patients(studies, partition, 1)


def test_a_small_alpha_is_less_even_than_a_large_one() -> None:
    studies = studies_of(300)

    def spread_of_healthy_shares(alpha: float) -> float:
        partition = Partition(scheme="dirichlet", sites=5, alpha=alpha, smallest_site_patients=5)
        shares = [
            np.mean(["no_finding" in study.positive for study in held])
            for held in partition_patients(studies, partition, 3).values()
        ]
        return float(max(shares) - min(shares))

    assert spread_of_healthy_shares(0.1) > 3 * spread_of_healthy_shares(1000.0)


def test_the_smallest_site_is_as_large_as_asked() -> None:
    partition = Partition(scheme="dirichlet", sites=4, alpha=0.3, smallest_site_patients=12)
    dealt = partition_patients(studies_of(120), partition, 0)
    assert min(len({s.patient_id for s in held}) for held in dealt.values()) >= 12


def test_natural_sites_come_from_the_attribute() -> None:
    dealt = partition_patients(studies_of(9), Partition(), 0)
    assert list(dealt) == ["hospital-0", "hospital-1", "hospital-2"]
    assert all(s.attributes["site"] == site for site, held in dealt.items() for s in held)


def test_small_natural_sites_are_pooled() -> None:
    studies = studies_of(9)
    lone = Study("s", "p", {}, frozenset({"edema"}), attributes={"site": "clinic"})
    other = Study("t", "q", {}, frozenset({"edema"}), attributes={"site": "practice"})
    dealt = partition_patients([*studies, lone, other], Partition(smallest_site_patients=2), 0)
    assert dealt[POOLED_SITE] == (lone, other)
    assert set(dealt) == {POOLED_SITE, "hospital-0", "hospital-1", "hospital-2"}


def test_a_study_without_a_site_is_named() -> None:
    studies = [Study("s1", "p1", {}, frozenset({"edema"}))]
    with pytest.raises(DataError, match=r"study s1 has no attribute 'site'.*attr\.site"):
        partition_patients(studies, Partition(), 0)


@pytest.mark.parametrize("name", ["line\nbreak", "x" * 201])
def test_a_site_that_no_round_can_name_is_told(name: str) -> None:
    study = Study("s", "p", {}, frozenset({"edema"}), attributes={"site": name})
    with pytest.raises(DataError, match=r"cannot be a site's name; give attr\.site 1 to 200"):
        partition_patients([study], Partition(), 0)


def test_more_sites_than_a_round_takes_are_refused() -> None:
    studies = [
        Study(f"s{i}", f"p{i}", {}, frozenset({"edema"}), attributes={"site": f"site-{i}"})
        for i in range(1001)
    ]
    with pytest.raises(DataError, match=r"has 1001 sites.*raise partition\.smallest_site_patients"):
        partition_patients(studies, Partition(), 0)
    assert len(partition_patients(studies, Partition(smallest_site_patients=2), 0)) == 1


def test_too_few_patients_are_refused_before_any_draw() -> None:
    partition = Partition(scheme="iid", sites=10, smallest_site_patients=5)
    with pytest.raises(DataError, match="need 50 patients, and there are 20"):
        partition_patients(studies_of(20), partition, 0)


def test_an_impossible_draw_says_what_to_change() -> None:
    partition = Partition(scheme="dirichlet", sites=10, alpha=0.001, smallest_site_patients=2)
    with pytest.raises(DataError, match=r"no draw of .* raise partition\.alpha"):
        partition_patients(studies_of(30), partition, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheme": "natural", "sites": 3}, "iid and dirichlet need a number of sites"),
        ({"scheme": "iid"}, "iid and dirichlet need a number of sites"),
        ({"scheme": "dirichlet", "sites": 3}, "belongs to the scheme dirichlet"),
        ({"scheme": "iid", "sites": 3, "alpha": 0.1}, "belongs to the scheme dirichlet"),
    ],
)
def test_arguments_fit_the_scheme(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Partition(**arguments)
