"""The phantom consortium: streams, prevalence, heterogeneity and the files it writes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from fedhash.data.manifest import read_manifest
from fedhash.data.phantom import (
    PHANTOM_FINDINGS,
    PhantomSettings,
    export_phantom,
    generate_phantom,
)
from fedhash.data.phantom.findings import Case, Presence, draw_case, draw_patient, draw_tilt
from fedhash.data.phantom.styles import draw_reporting, draw_scanner, draw_sensor
from fedhash.data.study import Study, label_matrix
from fedhash.randomness import numpy_stream

SMALL = PhantomSettings(sites=2, patients_per_site=6, studies_per_patient=1.5, image_size_px=32)


def same(a: Study, b: Study) -> bool:
    return (
        (a.study_id, a.patient_id, a.positive, a.uncertain, a.attributes)
        == (b.study_id, b.patient_id, b.positive, b.uncertain, b.attributes)
        and a.contents["report"].load() == b.contents["report"].load()
        and np.array_equal(a.contents["image"].load(), b.contents["image"].load())
        and np.array_equal(a.contents["signal"].load(), b.contents["signal"].load())
    )


@pytest.fixture(scope="module")
def studies() -> tuple[Study, ...]:
    return generate_phantom(SMALL, seed=7)


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    rng = numpy_stream(1, "cases")
    return [draw_case(draw_patient({}, rng), {}, rng) for _ in range(6000)]


def share(cases: list[Case], finding: str) -> float:
    return float(np.mean([finding in {p.finding for p in case.present} for case in cases]))


def test_contents_have_the_promised_shapes_and_ranges(studies: tuple[Study, ...]) -> None:
    for study in studies:
        image, signal = study.contents["image"].load(), study.contents["signal"].load()
        assert isinstance(image, np.ndarray)
        assert isinstance(signal, np.ndarray)
        assert (image.shape, image.dtype) == ((32, 32), np.float32)
        assert (signal.shape, signal.dtype) == ((1, 600), np.float32)
        assert 0 <= image.min() < 0.2
        assert 0.5 < image.max() <= 1
        assert np.isfinite(signal).all()
        assert study.contents["report"].load()
    assert len({study.study_id for study in studies}) == len(studies)
    assert {study.attributes["site"] for study in studies} == {"site-0", "site-1"}
    assert label_matrix(studies, PHANTOM_FINDINGS).shape == (len(studies), 14)


def test_the_same_seed_gives_the_same_studies_and_another_seed_others(
    studies: tuple[Study, ...],
) -> None:
    again = generate_phantom(SMALL, seed=7)
    other = generate_phantom(SMALL, seed=8)
    assert all(same(a, b) for a, b in zip(studies, again, strict=True))
    assert not any(same(a, b) for a, b in zip(studies, other, strict=False))


@pytest.mark.parametrize(
    "larger",
    [{"sites": 3}, {"patients_per_site": 8}, {"studies_per_patient": 3.0}],
    ids=["site", "patient", "exam"],
)
def test_adding_changes_nothing_that_was_there(
    studies: tuple[Study, ...], larger: dict[str, float]
) -> None:
    grown = {s.study_id: s for s in generate_phantom(SMALL.model_copy(update=larger), seed=7)}
    firsts = [study for study in studies if study.study_id.endswith("-e0")]
    assert len(grown) > len(studies)
    assert all(same(study, grown[study.study_id]) for study in firsts)


def test_a_patient_keeps_lasting_findings_in_every_exam() -> None:
    settings = SMALL.model_copy(update={"studies_per_patient": 5.0, "sites": 1})
    exams: dict[str, list[Study]] = {}
    for study in generate_phantom(settings, seed=3):
        exams.setdefault(study.patient_id, []).append(study)
    paced = [
        ["pacemaker" in study.positive for study in of_patient] for of_patient in exams.values()
    ]
    assert all(len(set(states)) == 1 for states in paced)
    assert {study.attributes["sex"] for study in exams["site-0-p0"]} < {"female", "male"}


def test_the_findings_have_a_long_tail_and_each_is_common_enough(cases: list[Case]) -> None:
    counts = Counter(finding for case in cases for finding in case.positive)
    shares = {finding: counts[finding] / len(cases) for finding in PHANTOM_FINDINGS}
    assert min(shares.values()) > 0.025
    assert max(shares, key=lambda finding: shares[finding]) == "no_finding"
    assert shares["no_finding"] > 5 * min(shares.values())
    abnormal = [case for case in cases if case.present]
    assert 1.6 < np.mean([len(case.present) for case in abnormal]) < 3


def test_findings_come_together(cases: list[Case]) -> None:
    def with_and_without(finding: str, cause: str) -> tuple[float, float]:
        causes = [any(p.finding == cause for p in case.present) for case in cases]
        there = [case for case, has in zip(cases, causes, strict=True) if has]
        absent = [case for case, has in zip(cases, causes, strict=True) if not has]
        return share(there, finding), share(absent, finding)

    for finding, cause in [
        ("edema", "cardiomegaly"),
        ("pleural_effusion", "edema"),
        ("pneumothorax", "fracture"),
    ]:
        there, absent = with_and_without(finding, cause)
        assert there > 1.8 * absent, (finding, cause)


def test_no_finding_stands_alone_and_labels_do_not_contradict(cases: list[Case]) -> None:
    for case in cases:
        assert case.positive
        assert not case.positive & case.uncertain
        assert not case.uncertain & {"pacemaker", "catheter", "no_finding"}
        assert ("no_finding" in case.positive) == (not case.present)
        if not case.present:
            assert (case.positive, case.uncertain) == ({"no_finding"}, frozenset())
    assert 0.05 < np.mean([bool(case.uncertain) for case in cases]) < 0.4


def test_the_most_severe_finding_is_never_hedged() -> None:
    rng = numpy_stream(2, "cases")
    for _ in range(300):
        case = draw_case(draw_patient({"edema": 4.0, "pneumonia": 4.0}, rng), {}, rng)
        if case.present:
            gravest: Presence = max(case.present, key=lambda presence: presence.severity)
            assert gravest.finding in case.positive


def test_a_tilt_changes_the_case_mix_of_a_site() -> None:
    assert set(draw_tilt(0.0, numpy_stream(0, "tilt")).values()) == {0.0}
    spread = np.std(list(draw_tilt(2.0, numpy_stream(0, "tilt")).values()))
    assert 1 < spread < 3.5
    rng = numpy_stream(3, "cases")
    tilt = {"nodule": 2.0, "edema": -2.0}
    tilted = [draw_case(draw_patient(tilt, rng), tilt, rng) for _ in range(1500)]
    level = [draw_case(draw_patient({}, rng), {}, rng) for _ in range(1500)]
    assert share(tilted, "nodule") > 2.5 * share(level, "nodule")
    assert share(tilted, "edema") < 0.5 * share(level, "edema")


@pytest.mark.parametrize("draw", [draw_scanner, draw_sensor, draw_reporting])
def test_styles_differ_between_sites_unless_their_strength_is_zero(draw: object) -> None:
    assert callable(draw)
    assert draw(0.0, numpy_stream(0, "a")) == draw(0.0, numpy_stream(0, "b"))
    assert draw(1.0, numpy_stream(0, "a")) != draw(1.0, numpy_stream(0, "b"))


def test_sites_look_different_only_when_they_have_styles() -> None:
    def spread_between_sites(strength: float) -> float:
        settings = PhantomSettings(
            sites=6, patients_per_site=12, image_size_px=32, style_strength=strength
        )
        means: dict[str, list[float]] = {}
        for study in generate_phantom(settings, seed=1):
            image = study.contents["image"].load()
            assert isinstance(image, np.ndarray)
            means.setdefault(study.attributes["site"], []).append(float(image.mean()))
        return float(np.std([np.mean(values) for values in means.values()]))

    assert spread_between_sites(1.0) > 3 * spread_between_sites(0.0)


def test_an_exported_phantom_reads_back_as_a_manifest(
    studies: tuple[Study, ...], tmp_path: Path
) -> None:
    export_phantom(studies, tmp_path / "phantom")
    manifest = read_manifest(
        tmp_path / "phantom" / "manifest.csv", PHANTOM_FINDINGS, ["image", "report", "signal"]
    )
    assert manifest.problems == ()
    for wrote, read in zip(studies, manifest.studies, strict=True):
        assert (read.study_id, read.patient_id) == (wrote.study_id, wrote.patient_id)
        assert (read.positive, read.uncertain) == (wrote.positive, wrote.uncertain)
        assert dict(read.attributes) == dict(wrote.attributes)
        assert read.contents["report"].load() == wrote.contents["report"].load()
        assert np.array_equal(read.contents["signal"].load(), wrote.contents["signal"].load())
        image, original = read.contents["image"].load(), wrote.contents["image"].load()
        assert isinstance(image, np.ndarray)
        assert isinstance(original, np.ndarray)
        # Eight bits: at most half a grey level away.
        np.testing.assert_allclose(image, original, atol=0.5 / 255 + 1e-6)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"sites": 0}, "greater than or equal to 1"),
        ({"image_size_px": 8}, "greater than or equal to 32"),
        ({"style_strength": -1.0}, "greater than or equal to 0"),
        ({"scanners": 3}, "Extra inputs are not permitted"),
    ],
)
def test_impossible_settings_are_refused(setting: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PhantomSettings.model_validate(setting)
