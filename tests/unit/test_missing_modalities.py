"""Sites that lack modalities: who is drawn, what stays, and that every engine trains on it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedhash.agreement import Agreement
from fedhash.data.phantom import PHANTOM_FINDINGS
from fedhash.data.study import InMemory, Study
from fedhash.errors import DataError
from fedhash.learning.settings import LearningSettings, LossSettings
from fedhash.models.settings import ModelSettings, TowerSettings
from fedhash.rounds.settings import RoundSettings
from fedhash_sim.cells import federations_of
from fedhash_sim.comparison import _check_same
from fedhash_sim.consortium import Consortium, build_consortium
from fedhash_sim.federation import train_federation
from fedhash_sim.heterogeneity.missing_modalities import lacking, missing_faults
from fedhash_sim.heterogeneity.settings import MissingModalities
from fedhash_sim.partition_settings import Partition
from fedhash_sim.roles import assign_roles
from fedhash_sim.settings import (
    EvaluationSettings,
    ManifestSource,
    PhantomSource,
    PublicPatients,
    ResolvedStudy,
    StudySettings,
)
from fedhash_sim.sources import Pool
from fedhash_sim.study_run import describe

MODALITIES = ("image", "report", "signal")
SITES = tuple(f"site-{number:02d}" for number in range(10))


def shares(**of: float) -> MissingModalities:
    return MissingModalities(shares=of)


@given(
    sites=st.integers(1, 40),
    losses=st.dictionaries(st.sampled_from(MODALITIES), st.floats(0.01, 0.99), min_size=1),
    seed=st.integers(0, 3),
)
def test_exactly_the_asked_share_lacks_each_modality_and_every_site_keeps_one(
    sites: int, losses: dict[str, float], seed: int
) -> None:
    names = [f"s{number}" for number in range(sites)]
    settings = shares(**losses)
    if missing_faults(settings, MODALITIES, names):
        return
    lost = lacking(settings, names, MODALITIES, seed)
    assert all(0 < len(each) < len(MODALITIES) for each in lost.values())
    counts = Counter(modality for each in lost.values() for modality in each)
    assert counts == {name: int(share * sites + 0.5) for name, share in losses.items()}
    turned = MissingModalities(shares=dict(reversed(losses.items())))
    assert lacking(turned, names[::-1], MODALITIES, seed) == lost


def test_losses_that_only_just_fit_leave_each_site_one() -> None:
    lost = lacking(shares(image=0.5, report=0.5), SITES, ("image", "report"), seed=0)
    assert sorted(lost.values()) == [("image",)] * 5 + [("report",)] * 5


def test_seeds_and_modalities_have_draws_of_their_own() -> None:
    def of(seed: int, modality: str) -> set[str]:
        return set(lacking(shares(**{modality: 0.5}), SITES, MODALITIES, seed))

    assert of(0, "image") != of(1, "image")
    assert of(0, "image") != of(0, "report")
    both = lacking(shares(image=0.5, report=0.5), SITES, MODALITIES, seed=0)
    assert {site for site, lost in both.items() if "image" in lost} == of(0, "image")


@pytest.mark.parametrize(
    ("settings", "key", "message"),
    [
        (shares(imag=0.5), "shares.imag", r"names 'imag', and .* did you mean \"image\""),
        (shares(image=0.04), "shares.image", "is 0.04, which of 10 sites is none; raise it"),
        (shares(image=0.96), "shares.image", "which of 10 sites is every one; lower it"),
        (shares(image=0.7, report=0.7, signal=0.7), "shares", "takes 21 .* more than 20 some"),
        (
            MissingModalities(sites={"site-3": ("image",)}),
            "sites.site-3",
            r"names 'site-3', which is no site that takes part; did you mean \"site-03\"",
        ),
        (
            MissingModalities(sites={"site-03": MODALITIES}),
            "sites.site-03",
            "leaves nothing to 'site-03'",
        ),
        (
            MissingModalities(sites={"site-03": ("report", "x-ray")}),
            "sites.site-03.1",
            "names 'x-ray'",
        ),
        (
            MissingModalities(sites=dict.fromkeys(SITES, ("signal",))),
            "sites",
            "leaves 'signal' to no site; let one keep it",
        ),
    ],
)
def test_what_cannot_be_is_told_with_its_key(
    settings: MissingModalities, key: str, message: str
) -> None:
    ((place, told),) = missing_faults(settings, MODALITIES, SITES)
    assert ".".join(map(str, place)) == f"missing_modalities.{key}"
    assert told.startswith("missing_modalities")
    assert re.search(message, told), told


def test_what_hangs_on_the_sites_waits_for_them() -> None:
    assert missing_faults(shares(image=0.04), MODALITIES, None) == []
    assert missing_faults(shares(mri=0.5), MODALITIES, None)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"shares": {"image": 0.5}, "sites": {"a": ("image",)}},
        {"shares": {"image": 0.0}},
        {"shares": {"image": 1.0}},
    ],
)
def test_settings_that_say_nothing_or_two_things_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MissingModalities(**wrong)


def study_with(**changes: Any) -> ResolvedStudy:
    named = {"agreement": Path("a.yaml"), "round": Path("r.yaml")}
    manifest = ManifestSource(kind="manifest", manifest=Path("m.csv"))
    settings = StudySettings(name="test", **named, **({"data": manifest} | changes))
    small = {"word_features": 16, "character_features": 16, "hidden": 4}
    rounds = RoundSettings(
        model=ModelSettings(
            towers={
                "report": TowerSettings(name="report_ngrams", options=small),
                "signal": TowerSettings(name="signal_convnet", options={"samples": 64, "width": 8}),
            }
        ),
        learning=LearningSettings(local_steps=2, batch_patients=4),
        rounds=1,
        aggregation="plain",
    )
    agreement = Agreement(
        name="test", findings=PHANTOM_FINDINGS, modalities=MODALITIES, code_bits=16
    )
    return ResolvedStudy(settings, agreement, rounds, {"federated": rounds})


def pool_of(site_of_patient: str, contents: dict[str, str]) -> Pool:
    """Patients at sites of one letter; those of a site have the same modalities."""
    return Pool(
        tuple(
            Study(
                f"{split}-{number}",
                f"patient-{split}-{number}",
                {name: InMemory("x") for name in contents[site].split()},
                frozenset({"edema"}),
                attributes={"site": site, "split": split},
            )
            for split in ("train", "test")
            for number, site in enumerate(site_of_patient)
        )
    )


NATURAL = {"partition": Partition(), "splits": "published"}


def test_a_study_that_has_only_what_its_site_lacks_takes_no_part() -> None:
    pool = pool_of("aaabbbccc", {"a": "report signal", "b": "report signal", "c": "report"})
    named = MissingModalities(sites={"a": ("report",)})
    roles = assign_roles(study_with(missing_modalities=named, **NATURAL), pool, seed=0)
    assert roles.missing == {"a": ("report",)}
    assert roles.notes == ()
    mixed = replace(pool, studies=(replace(pool.studies[0], contents={}), *pool.studies[1:]))
    roles = assign_roles(study_with(missing_modalities=named, **NATURAL), mixed, seed=0)
    assert roles.notes == ("site 'a' lacks all that 1 of its 3 studies have; they take no part",)
    assert roles.training["a"] == roles.database["a"] == ("train-1", "train-2")


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"c": ("report",)}, "without report site 'c' has 0 patients, and partition.smallest_site"),
        ({"d": ("report",)}, "names 'd', which is no site that takes part; valid here: a, b, c"),
        (
            {"a": ("signal",), "b": ("signal",)},
            "report -> signal cannot be evaluated: no database study has 'signal'",
        ),
    ],
)
def test_what_only_the_data_tells_is_refused_with_it(
    named: dict[str, tuple[str, ...]], message: str
) -> None:
    pool = pool_of("aaabbbccc", {"a": "report signal", "b": "report signal", "c": "report"})
    study = study_with(missing_modalities=MissingModalities(sites=named), **NATURAL)
    with pytest.raises(DataError, match=f"seed 0: .*{message}"):
        assign_roles(study, pool, seed=0)


def phantom(folder: Path, seed: int = 0, **changes: Any) -> tuple[ResolvedStudy, Consortium]:
    study = study_with(
        data=PhantomSource(kind="phantom", sites=4, patients_per_site=8, image_size_px=32),
        **changes,
    )
    return study, build_consortium(study, seed, folder / f"seed-{seed}")


def test_a_site_s_training_and_database_lack_it_and_queries_stay_whole(tmp_path: Path) -> None:
    changes = {
        "public": PublicPatients(share=0.2),
        "evaluation": EvaluationSettings(held_out_database=0.4),
    }
    _, whole = phantom(tmp_path / "whole", **changes)
    missing = shares(report=0.5, signal=0.25)
    _, held = phantom(tmp_path / "held", missing_modalities=missing, **changes)
    assert len(held.roles.missing) >= 2
    for site in held.sites:
        lost = held.roles.missing.get(site, ())
        for part in (Consortium.training, Consortium.database):
            own, all_of_it = part(held, site), part(whole, site)
            assert own.study_ids == all_of_it.study_ids
            for modality in ("report", "signal"):
                gone = modality in lost
                assert own.present[modality].any() == (len(own) > 0 and not gone)
                expected = all_of_it.inputs[modality] * (not gone)
                assert torch.equal(own.inputs[modality], expected)
    assert held.roles.missing.keys() <= {f"site-{number}" for number in range(4)}
    for part in (Consortium.queries, Consortium.public):
        assert len(part(held)) > 0
        for modality, inputs in part(held).inputs.items():
            assert torch.equal(inputs, part(whole).inputs[modality])
    again = Consortium.load(tmp_path / "held" / "seed-0")
    assert again.roles == held.roles


def test_sites_where_the_contrastive_loss_has_no_pair_are_told(tmp_path: Path) -> None:
    study, held = phantom(tmp_path, missing_modalities=shares(report=0.5, signal=0.25))
    contrastive = study.round.model_copy(update={"loss": LossSettings(name="contrastive")})
    paired = replace(study, round_of={"federated": contrastive})
    assert [note.partition(" has two")[0] for note in describe(paired, {0: held})["notes"]] == [
        f"seed 0: no training study of site {site!r}" for site in sorted(held.roles.missing)
    ]
    assert describe(study, {0: held})["notes"] == []


def test_all_engines_and_secure_sums_train_on_what_the_sites_hold(tmp_path: Path) -> None:
    study, consortium = phantom(tmp_path, missing_modalities=shares(report=0.25, signal=0.5))
    (federation,) = federations_of(study, consortium, "federated", seed=0)
    secure = federation.settings.model_copy(update={"aggregation": "secure"})
    vectors = [
        train_federation(each, engine, tmp_path / name, lambda *_: None).model
        for name, engine, each in (
            ("inprocess", "inprocess", federation),
            ("vectorised", "vectorised", federation),
            ("secure", "inprocess", replace(federation, settings=secure)),
        )
    ]
    assert np.abs(vectors[0] - vectors[0].mean()).max() > 0.01
    np.testing.assert_allclose(vectors[1], vectors[0], atol=2e-5)
    np.testing.assert_allclose(vectors[2], vectors[0], atol=1e-3)


def test_runs_that_lack_different_modalities_are_not_compared(tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("whole", "held")]
    lost = (None, shares(report=0.25))
    studies = [
        phantom(run / "data", missing_modalities=missing)[0]
        for run, missing in zip(runs, lost, strict=True)
    ]
    with pytest.raises(DataError, match=r"missing_modalities: shares=.* against None"):
        _check_same(runs, studies, [0])
    _check_same(runs[:1] * 2, studies[:1] * 2, [0])


def test_runs_whose_partitions_take_a_modality_from_other_studies_are_not_compared(
    tmp_path: Path,
) -> None:
    runs = [tmp_path / scheme for scheme in ("iid", "linear")]
    for missing, refused in ((None, False), (shares(report=0.25), True)):
        studies = [
            phantom(
                run / str(refused) / "data",
                missing_modalities=missing,
                partition=Partition.model_validate({"scheme": run.name, "sites": 4}),
            )[0]
            for run in runs
        ]
        folders = [run / str(refused) for run in runs]
        if refused:
            with pytest.raises(DataError, match=r"the database of seed 0: .* against "):
                _check_same(folders, studies, [0])
        else:
            _check_same(folders, studies, [0])
