from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhash.data.study import InMemory, Study
from fedhash.errors import DataError
from fedhash_sim.partitions import POOLED_SITE, PartitionError, partition_patients
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


SCHEMES: list[dict[str, Any]] = [
    {"scheme": "iid", "sites": 4},
    {"scheme": "dirichlet", "sites": 4, "alpha": 0.1},
    {"scheme": "dirichlet", "sites": 4, "alpha": 100.0},
]
PATIENTS = st.dictionaries(
    st.text(max_size=8),
    st.lists(st.sets(st.sampled_from("abcde"), min_size=1), min_size=1, max_size=3),
    min_size=1,
    max_size=20,
)


def one_each(findings: Iterable[str]) -> list[Study]:
    """A patient and a study for each finding."""
    return [
        Study(f"s{number}", f"p{number}", {}, frozenset({finding}))
        for number, finding in enumerate(findings)
    ]


def with_studies(patients: dict[str, list[set[str]]]) -> list[Study]:
    return [
        Study(f"{patient}/{number}", patient, {}, frozenset(positive))
        for patient, studies in patients.items()
        for number, positive in enumerate(studies)
    ]


def homes(dealt: dict[str, tuple[Study, ...]]) -> dict[str, str]:
    """Study id to site."""
    return {study.study_id: site for site, held in dealt.items() for study in held}


def of_at_least(smallest: int, scheme: dict[str, Any]) -> Partition:
    """The scheme with a smallest site, which may be 0: then the first draw is always taken."""
    return Partition(**scheme).model_copy(update={"smallest_site_patients": smallest})


def first_homes(studies: list[Study], scheme: dict[str, Any], seed: int) -> dict[str, str]:
    """Study id to site in the first draw, however small the sites."""
    return homes(partition_patients(studies, of_at_least(0, scheme), seed))


def smallest_at_first(studies: list[Study], scheme: dict[str, Any], seed: int) -> int:
    """Patients of the smallest site in the first draw, of studies of a patient each."""
    sizes = Counter(first_homes(studies, scheme, seed).values())
    return min(sizes.values()) if len(sizes) == scheme["sites"] else 0


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
    assert len({(s.patient_id, site) for site, held in dealt.items() for s in held}) == patients
    assert dealt == partition_patients(studies, partition, seed)


def test_another_seed_deals_otherwise() -> None:
    studies = studies_of(60)
    partition = Partition(scheme="iid", sites=3)
    assert partition_patients(studies, partition, 0) != partition_patients(studies, partition, 1)


@pytest.mark.parametrize("scheme", SCHEMES)
@given(patients=PATIENTS, seed=st.integers(0, 2**40), data=st.data())
@settings(max_examples=25, deadline=None)
def test_a_patient_stands_where_it_would_stand_alone(
    scheme: dict[str, Any], patients: dict[str, list[set[str]]], seed: int, data: st.DataObject
) -> None:
    studies = data.draw(st.permutations(with_studies(patients)))
    found = first_homes(studies, scheme, seed)
    assert found.keys() == {study.study_id for study in studies}
    patient = data.draw(st.sampled_from(sorted(patients)))
    alone = first_homes(with_studies({patient: patients[patient]}), scheme, seed)
    assert alone.items() <= found.items()
    assert len(set(alone.values())) == 1


@pytest.mark.parametrize("scheme", SCHEMES)
@given(seed=st.integers(0, 2**40), more=PATIENTS, data=st.data())
@settings(max_examples=25, deadline=None)
def test_more_patients_move_nobody_where_the_first_draw_was_taken(
    scheme: dict[str, Any], seed: int, more: dict[str, list[set[str]]], data: st.DataObject
) -> None:
    old = one_each("aab" * 20)
    new = with_studies({f"new {patient}": studies for patient, studies in more.items()})
    partition = of_at_least(smallest_at_first(old, scheme, seed), scheme)
    before = homes(partition_patients(old, partition, seed))
    after = homes(partition_patients(data.draw(st.permutations(old + new)), partition, seed))
    assert before == first_homes(old, scheme, seed)
    assert before.items() <= after.items()
    assert len(after) == len(old) + len(new)


def test_more_patients_can_make_a_refused_draw_large_enough() -> None:
    """The exception that the rules name."""
    scheme = {"scheme": "dirichlet", "sites": 4, "alpha": 1.0}
    few, many = one_each("abc" * 10), one_each("abc" * 100)
    partition = of_at_least(smallest_at_first(few, scheme, 0) + 1, scheme)
    before = homes(partition_patients(few, partition, 0))
    after = homes(partition_patients(many, partition, 0))
    assert after == first_homes(many, scheme, 0)
    assert not before.items() <= after.items()


@given(
    had=st.sets(st.sampled_from("abcde"), min_size=1),
    new=st.sampled_from("abcdef"),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=50, deadline=None)
def test_a_new_finding_of_a_patient_moves_it_to_that_finding_s_site_or_not_at_all(
    had: set[str], new: str, seed: int
) -> None:
    def site(*studies: set[str]) -> str:
        found = set(first_homes(with_studies({"p": [*studies]}), SCHEMES[1], seed).values())
        assert len(found) == 1
        return found.pop()

    assert site(had, {new}) in {site(had), site({new})}


def test_a_patient_is_dealt_by_any_of_its_findings_as_often() -> None:
    """Dirichlet with a very small alpha gives a finding to one site."""
    scheme = {"scheme": "dirichlet", "sites": 20, "alpha": 1e-4}
    (of_a,) = set(first_homes(one_each("a" * 50), scheme, 0).values())
    (of_b,) = set(first_homes(one_each("b" * 50), scheme, 0).values())
    assert of_a != of_b
    both = [Study(f"s{n}", f"p{n}", {}, frozenset("ab")) for n in range(1000)]
    found = list(first_homes(both, scheme, 0).values())
    for site in (of_a, of_b):
        assert found.count(site) == pytest.approx(500, abs=4 * 250**0.5)  # 4 standard deviations


@pytest.mark.parametrize("alpha", [0.1, 1000.0])
def test_a_small_alpha_is_uneven_in_every_finding_and_a_large_one_in_none(alpha: float) -> None:
    studies = one_each("abc" * 2000)
    partition = Partition(scheme="dirichlet", sites=5, alpha=alpha)
    dealt = partition_patients(studies, partition, 3)
    for finding in "abc":
        shares = [sum(finding in s.positive for s in held) / 2000 for held in dealt.values()]
        if alpha < 1:
            assert max(shares) > 0.4
        else:
            # a Dirichlet share has a standard deviation of 0.006 here, its sample one of 0.009
            assert shares == pytest.approx([0.2] * 5, abs=4 * 0.011)


@pytest.mark.parametrize("sites", [2, 7, 300])
def test_iid_sites_have_as_many_patients_on_average(sites: int) -> None:
    patients = 100 * sites
    dealt = partition_patients(one_each("a" * patients), Partition(scheme="iid", sites=sites), 0)
    sizes = np.array([len(held) for held in dealt.values()])
    # of a chi-square of sites - 1 degrees of freedom: mean and 4 standard deviations
    spread = ((sizes - 100) ** 2 / 100).sum()
    assert spread < sites - 1 + 4 * (2 * (sites - 1)) ** 0.5


def test_iid_does_not_look_at_findings() -> None:
    scheme = SCHEMES[0]
    assert first_homes(one_each("a" * 60), scheme, 0) == first_homes(one_each("ab" * 30), scheme, 0)


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


@pytest.mark.parametrize(
    ("scheme", "advice"),
    [
        (
            {"scheme": "dirichlet", "sites": 3, "alpha": 0.001},
            r" at alpha 0\.001; raise partition\.alpha or lower partition\.sites or partition\.sm",
        ),
        (
            {"scheme": "iid", "sites": 3},
            r"; lower partition\.sites or partition\.smallest_site_pat",
        ),
    ],
)
def test_an_impossible_draw_says_what_to_change(scheme: dict[str, Any], advice: str) -> None:
    partition = Partition(**scheme, smallest_site_patients=2000)
    message = "no draw of 200 gave each of 3 sites at least 2000 patients"
    with pytest.raises(DataError, match=message + advice):
        partition_patients(one_each("a" * 6000), partition, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheme": "natural", "sites": 3}, "natural takes the sites from the data"),
        ({"scheme": "iid"}, "the scheme iid needs a number of sites"),
        ({"scheme": "iid", "sites": 3, "attribute": "scanner"}, "belongs to the scheme natural"),
        ({"scheme": "shard", "sites": 3}, "belongs to the scheme shard, which needs it"),
        ({"scheme": "pathological", "sites": 3}, "the scheme pathological, which needs it"),
        ({"scheme": "linear", "sites": 3, "shards_per_site": 2}, "belongs to the scheme shard"),
        ({"scheme": "dirichlet", "sites": 3}, "belongs to the scheme dirichlet"),
        ({"scheme": "iid", "sites": 3, "alpha": 0.1}, "belongs to the scheme dirichlet"),
    ],
)
def test_arguments_fit_the_scheme(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Partition(**arguments)


IN_TURN: list[dict[str, Any]] = [
    {"scheme": "pathological", "findings_per_site": 2},
    {"scheme": "shard", "shards_per_site": 2},
    {"scheme": "linear"},
    {"scheme": "square"},
    {"scheme": "exponential"},
]


@pytest.mark.parametrize("scheme", IN_TURN)
@given(
    patients=st.integers(150, 160),
    sites=st.integers(2, 4),
    seed=st.integers(0, 2**40),
    data=st.data(),
)
@settings(max_examples=5, deadline=None)
def test_every_patient_is_dealt_once_whatever_the_order_of_the_studies(
    scheme: dict[str, Any], patients: int, sites: int, seed: int, data: st.DataObject
) -> None:
    studies = studies_of(patients)
    dealt = partition_patients(studies, Partition(**scheme, sites=sites), seed)
    assert len(dealt) == sites
    assert homes(dealt).keys() == {study.study_id for study in studies}
    assert len({(s.patient_id, site) for site, held in dealt.items() for s in held}) == patients
    shuffled = data.draw(st.permutations(studies))
    assert homes(partition_patients(shuffled, Partition(**scheme, sites=sites), seed)) == homes(
        dealt
    )


@given(sites=st.integers(3, 8), seen=st.integers(1, 3), seed=st.integers(0, 2**40))
@settings(max_examples=8, deadline=None)
def test_pathological_sites_see_so_many_findings(sites: int, seen: int, seed: int) -> None:
    studies = one_each("abc" * 40)
    partition = Partition(scheme="pathological", sites=sites, findings_per_site=seen)
    dealt = partition_patients(studies, partition, seed)
    assert {len({f for s in held for f in s.positive}) for held in dealt.values()} == {seen}


def test_as_many_sites_as_findings_see_one_each() -> None:
    """The first finding of a site comes in turn: drawn, one deal in 20,000 would cover all 12."""
    partition = Partition(scheme="pathological", sites=12, findings_per_site=1)
    dealt = partition_patients(one_each("abcdefghijkl" * 5), partition, 3)
    seen = [{f for study in held for f in study.positive} for held in dealt.values()]
    assert sorted(map(sorted, seen)) == [[each] for each in "abcdefghijkl"]


@given(sites=st.integers(2, 6), shards=st.integers(1, 4), patients=st.integers(30, 99))
@settings(max_examples=8, deadline=None)
def test_shards_are_equal_and_of_neighbouring_findings(
    sites: int, shards: int, patients: int
) -> None:
    studies = one_each("a" * (patients // 2) + "b" * (patients - patients // 2))
    partition = Partition(scheme="shard", sites=sites, shards_per_site=shards)
    dealt = partition_patients(studies, partition, 0)
    sizes = [len(held) for held in dealt.values()]
    assert sum(sizes) == patients
    assert max(sizes) - min(sizes) <= shards  # a shard is larger by one at most
    mixed = [held for held in dealt.values() if len({f for s in held for f in s.positive}) > 1]
    if shards == 1:
        assert len(mixed) <= 1, "one shard lies across the border of two findings"


@pytest.mark.parametrize(
    ("scheme", "shares"),
    [
        ("linear", [1 / 6, 2 / 6, 3 / 6]),
        ("square", [1 / 14, 4 / 14, 9 / 14]),
        ("exponential", [0.0900, 0.2447, 0.6652]),  # e, e^2, e^3 over their sum
    ],
)
def test_sizes_grow_with_the_number_of_the_site(scheme: str, shares: list[float]) -> None:
    dealt = partition_patients(one_each("ab" * 500), Partition(scheme=scheme, sites=3), 1)
    assert [len(held) / 1000 for held in dealt.values()] == pytest.approx(shares, abs=0.003)
    # in which order they come depends on no finding
    shares_of_a = [np.mean(["a" in s.positive for s in held]) for held in dealt.values()]
    assert shares_of_a == pytest.approx([0.5] * 3, abs=4 * 0.5 / np.sqrt(1000 * shares[0]))


@pytest.mark.parametrize(
    ("arguments", "patients", "key", "message"),
    [
        (
            {"scheme": "shard", "sites": 4, "shards_per_site": 9},
            30,
            "shards_per_site",
            "4 sites of 9 shards need at least 36 patients, and there are 30; lower",
        ),
        (
            {"scheme": "pathological", "sites": 4, "findings_per_site": 4},
            30,
            "findings_per_site",
            "each site is to see 4 findings, and the training patients have 3; lower",
        ),
        (
            {"scheme": "pathological", "sites": 2, "findings_per_site": 1},
            30,
            "findings_per_site",
            "2 sites that see 1 of 3 findings would leave 1 to nobody; raise",
        ),
        (
            {"scheme": "exponential", "sites": 9},
            30,
            "smallest_site_patients",
            "sizes that grow as exponential do not give each of 9 sites at least 1 patients; lower",
        ),
    ],
)
def test_what_the_patients_do_not_allow_is_told_with_its_argument(
    arguments: dict[str, Any], patients: int, key: str, message: str
) -> None:
    with pytest.raises(PartitionError, match=message) as refused:
        partition_patients(one_each("abc" * (patients // 3)), Partition(**arguments), 0)
    assert refused.value.key == key


def test_natural_sites_come_from_another_attribute_where_one_is_named() -> None:
    studies = [
        Study(f"s{n}", f"p{n}", {}, frozenset({"edema"}), attributes={"scanner": f"unit-{n % 2}"})
        for n in range(6)
    ]
    dealt = partition_patients(studies, Partition(attribute="scanner"), 0)
    assert list(dealt) == ["unit-0", "unit-1"]
    with pytest.raises(PartitionError, match=r"no attribute 'site'.*name another attribute"):
        partition_patients(studies, Partition(), 0)
