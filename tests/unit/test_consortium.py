from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from fedhash.agreement import Agreement
from fedhash.data.study import InMemory, Study
from fedhash.errors import ConfigurationError, DataError
from fedhash.learning.settings import LearningSettings
from fedhash.models.settings import ModelSettings, TowerSettings
from fedhash.rounds.settings import RoundSettings
from fedhash.secagg.terms import SecureAggregationTerms
from fedhash_sim.roles import assign_roles
from fedhash_sim.settings import (
    EvaluationSettings,
    ManifestSource,
    Partition,
    PublicPatients,
    ResolvedStudy,
    SplitFractions,
    StudySettings,
)
from fedhash_sim.sources import Pool


def study_with(**changes: object) -> ResolvedStudy:
    settings = StudySettings(
        name="test",
        agreement=Path("a.yaml"),
        round=Path("r.yaml"),
        data=ManifestSource(kind="manifest", manifest=Path("m.csv")),
        **{"partition": Partition(scheme="iid", sites=3), **changes},
    )
    rounds = RoundSettings(
        model=ModelSettings(towers={"report": TowerSettings(name="report_ngrams")}),
        learning=LearningSettings(),
        rounds=1,
    )
    agreement = Agreement(name="test", findings=("a", "b"), modalities=("report",))
    return ResolvedStudy(settings, agreement, rounds, {})


def study_of(patient: int, **attributes: str) -> Study:
    contents = {"report": InMemory("x")}
    return Study(
        f"study-{patient}", f"patient-{patient}", contents, frozenset("a"), attributes=attributes
    )


def pool_of(patients: int, **attributes: str) -> Pool:
    return Pool(
        tuple(
            Study(
                f"study-{patient}-{number}",
                f"patient-{patient}",
                {"report": InMemory("x")},
                frozenset({"ab"[patient % 2]}),
                attributes=attributes,
            )
            for patient in range(patients)
            for number in range(2)
        )
    )


def patients_of(study_ids: tuple[str, ...]) -> set[str]:
    return {study_id.split("-")[1] for study_id in study_ids}


@pytest.mark.parametrize("held_out", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_no_patient_that_asks_or_is_held_out_was_trained_on(held_out: float, seed: int) -> None:
    study = study_with(evaluation=EvaluationSettings(held_out_database=held_out))
    roles = assign_roles(study, pool_of(300), seed)
    trained = [patients_of(ids) for ids in roles.training.values()]
    searched = [patients_of(ids) for ids in roles.database.values()]
    asking = patients_of(roles.queries)
    assert not asking & set().union(*trained, *searched)
    assert sum(map(len, trained)) == len(set().union(*trained)), "one site a patient"
    if held_out:
        assert not set().union(*trained) & set().union(*searched)
        share = len(set().union(*searched)) / len(set().union(*trained, *searched))
        assert share == pytest.approx(held_out, abs=0.1)
    else:
        assert trained == searched
    assert len(asking) == pytest.approx(60, abs=25)


def test_the_published_split_is_taken_as_it_is() -> None:
    train, test = pool_of(20, split="train"), pool_of(30, split="test")
    queries = tuple(each for each in test.studies if int(each.patient_id.split("-")[1]) >= 20)
    pool = Pool((*train.studies, *queries))
    roles = assign_roles(study_with(splits="published"), pool, seed=0)
    assert set(roles.queries) == {each.study_id for each in queries}
    assert sum(map(len, roles.training.values())) == 40


def test_an_empty_split_is_told() -> None:
    study = study_with(splits="published", evaluation=EvaluationSettings(queries="val"))
    with pytest.raises(DataError, match=r"the split 'val' is empty; the data has train: 40"):
        assign_roles(study, pool_of(20, split="train"), seed=0)


def test_a_site_without_anybody_to_train_on_is_told() -> None:
    study = study_with(
        partition=Partition(scheme="iid", sites=10),
        splits=SplitFractions(val=0.0, test=0.2),
        evaluation=EvaluationSettings(held_out_database=0.9),
    )
    with pytest.raises(DataError, match="none is left to train on; lower evaluation"):
        assign_roles(study, pool_of(30), seed=0)


@pytest.mark.parametrize(
    ("evaluation", "place"),
    [
        (EvaluationSettings(groups=("sexx",)), "4: seed 0: evaluation.groups names 'sexx'"),
        (EvaluationSettings(queries="val"), "3: seed 0: the split 'val' is empty"),
    ],
)
def test_what_the_data_does_not_allow_has_its_line(
    tmp_path: Path, evaluation: EvaluationSettings, place: str
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("name: s\nevaluation:\n  queries: val\n  groups: [sexx]\n")
    study = study_with(evaluation=evaluation, splits=SplitFractions(val=0.0, test=0.2))
    with pytest.raises(ConfigurationError, match=rf"study\.yaml:{place}"):
        assign_roles(replace(study, file=file), pool_of(60, sex="female"), seed=0)


@pytest.mark.parametrize("groups", [("sex", "sex"), ("finding",)])
def test_groups_that_would_be_mixed_with_others_are_refused(groups: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match=r"name each once|is a group of results"):
        EvaluationSettings(groups=groups)


def test_an_attribute_to_report_by_that_no_study_has_gets_the_nearest_name() -> None:
    study = study_with(evaluation=EvaluationSettings(groups=("sexx",)))
    with pytest.raises(
        DataError, match=r"names 'sexx', an attribute that no.*did you mean \"sex\""
    ):
        assign_roles(study, pool_of(60, sex="female"), seed=0)
    assign_roles(
        study_with(evaluation=EvaluationSettings(groups=("sex",))), pool_of(60, sex="female"), 0
    )


def test_natural_sites_that_no_round_can_have_are_told_with_the_data() -> None:
    whole = study_with(partition=Partition())
    study = replace(whole, round_of={"federated": whole.round})
    sites = [study_of(patient, site=f"site-{patient % 4}") for patient in range(100)]
    assert len(assign_roles(study, Pool(tuple(sites)), seed=0).training) == 4
    terms = SecureAggregationTerms(largest_corrupt_share=0.2, largest_dropout_share=0.3)
    agreement = study.agreement.model_copy(update={"secure_aggregation": terms})
    with pytest.raises(DataError, match="seed 0: the partition: no graph of 4 sites bears") as told:
        assign_roles(replace(study, agreement=agreement), Pool(tuple(sites)), seed=0)
    assert "splits" not in str(told.value)  # more sites are no remedy here
    many = study.agreement.model_copy(update={"smallest_cohort": 5})
    with pytest.raises(
        DataError, match=r"enrol more sites, leave more patients to train in splits"
    ):
        assign_roles(replace(study, agreement=many), Pool(tuple(sites)), seed=0)
    assert assign_roles(replace(whole, agreement=agreement), Pool(tuple(sites)), seed=0)


def test_a_site_that_keeps_nothing_for_the_database_is_noted() -> None:
    study = study_with(partition=Partition(), evaluation=EvaluationSettings(held_out_database=0.3))
    many = pool_of(100, site="large").studies
    for seed in range(20):
        roles = assign_roles(study, Pool((*many, study_of(1000, site="lone"))), seed)
        if "lone" in roles.training:
            break
    assert roles.database["lone"] == ()
    assert roles.notes == ("site 'lone' keeps no study for the database: nothing is found there",)


def test_an_empty_database_is_refused() -> None:
    study = study_with(
        partition=Partition(scheme="iid", sites=2),
        evaluation=EvaluationSettings(held_out_database=0.001),
    )
    message = r"seed 4: report -> report cannot be evaluated: no database study has 'report'"
    with pytest.raises(DataError, match=message):
        assign_roles(study, pool_of(40), seed=4)


def test_a_natural_site_that_the_split_leaves_without_training_patients_is_noted() -> None:
    training = pool_of(20, site="large", split="train").studies
    asking = [study_of(n, site="lone", split="test") for n in (50, 51)]
    study = study_with(partition=Partition(), splits="published")
    roles = assign_roles(study, Pool((*training, *asking)), seed=0)
    assert set(roles.training) == {"large"}
    (note,) = roles.notes
    assert note == ("site 'lone' takes no part: none of its 2 patients is in the training split")


def test_a_direction_without_a_query_is_refused_before_any_training() -> None:
    training = pool_of(20, split="train").studies
    asking = Study("q", "p", {"image": InMemory("x")}, frozenset("a"), attributes={"split": "test"})
    message = r"report -> report cannot be evaluated: no query study has 'report'"
    with pytest.raises(DataError, match=message):
        assign_roles(study_with(splits="published"), Pool((*training, asking)), seed=0)


def with_public(share: float = 0.3, **changes: object) -> ResolvedStudy:
    return study_with(
        public=PublicPatients(share=share, **changes), splits=SplitFractions(val=0.1, test=0.2)
    )


def test_public_patients_are_nobody_elses_and_a_site_of_their_own() -> None:
    roles = assign_roles(with_public(), pool_of(100), seed=1)
    assert sorted(roles.training) == ["public", "site-00", "site-01", "site-02"]
    assert roles.training["public"] == roles.public
    assert roles.database["public"] == ()
    public = {each.split("-")[1] for each in roles.public}
    assert 12 <= len(public) <= 30  # of about 70 training patients
    others = [each for site, ids in roles.training.items() if site != "public" for each in ids]
    for elsewhere in (others, roles.queries, *roles.database.values()):
        assert public.isdisjoint(each.split("-")[1] for each in elsewhere)
    alone = assign_roles(with_public(takes_part=False), pool_of(100), seed=1)
    assert sorted(alone.training) == ["site-00", "site-01", "site-02"]
    assert alone.public == roles.public
    assert all(alone.training[site] == roles.training[site] for site in alone.training)


def test_a_share_that_leaves_nobody_is_refused() -> None:
    with pytest.raises(DataError, match="change public\\.share"):
        assign_roles(with_public(share=1e-9), pool_of(20), seed=1)


def test_a_site_named_as_the_public_patients_is_refused() -> None:
    study = study_with(
        public=PublicPatients(share=0.5),
        partition=Partition(),
        splits=SplitFractions(val=0.1, test=0.2),
    )
    with pytest.raises(DataError, match="a site is named 'public'"):
        assign_roles(study, pool_of(60, site="public"), seed=1)
