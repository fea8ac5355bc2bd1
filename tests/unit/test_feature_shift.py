"""Looks of sites: what each does to a content, who wears which, and that none changes another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fedhash.data.phantom.styles import Scanner, Sensor, draw_scanner, draw_sensor
from fedhash.data.study import InMemory, Study
from fedhash.errors import DataError
from fedhash_sim.consortium import Consortium, build_consortium
from fedhash_sim.heterogeneity.at_sites import at_their_sites, differ
from fedhash_sim.heterogeneity.feature_shift import restyled, shift_faults, shifted_modalities
from fedhash_sim.heterogeneity.images import through_scanner
from fedhash_sim.heterogeneity.reports import WritingHabits, as_written, draw_habits
from fedhash_sim.heterogeneity.settings import FeatureShift
from fedhash_sim.heterogeneity.signals import through_sensor
from fedhash_sim.partition_settings import Partition
from fedhash_sim.roles import Roles, assign_roles
from fedhash_sim.settings import ResolvedStudy, StudySettings, read_study
from fedhash_sim.sources import Pool, load_pool
from fedhash_sim.sweeps.data_check import dealt_by

ROOT = Path(__file__).parents[2]
IMAGES = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, min_side=3, max_side=12),
    elements=st.floats(0, 1, width=32),
)
STRENGTHS = st.sampled_from([0.0, 0.3, 1.0, 3.0])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


COMMON_SCANNER, COMMON_SENSOR = draw_scanner(0.0, rng()), draw_sensor(0.0, rng())


def scanned(image: np.ndarray, **changes: Any) -> np.ndarray:
    scanner: Scanner = replace(COMMON_SCANNER, **changes)
    return through_scanner(image.astype(np.float32), rng(), scanner=scanner)


def recorded(signal: np.ndarray, **changes: Any) -> np.ndarray:
    sensor: Sensor = replace(COMMON_SENSOR, **changes)
    return through_sensor(signal.astype(np.float32), rng(), sensor=sensor)


@given(image=IMAGES, strength=STRENGTHS, seed=st.integers(0, 5))
def test_an_image_keeps_its_shape_and_its_range(
    image: np.ndarray, strength: float, seed: int
) -> None:
    stored = through_scanner(image, rng(seed), scanner=draw_scanner(strength, rng(seed)))
    assert stored.shape == image.shape
    assert stored.dtype == np.float32
    assert stored.min() >= 0
    assert stored.max() <= 1
    if strength == 0:
        np.testing.assert_allclose(stored, image, atol=1e-6)


def test_tone_curve_and_brightness_act_on_grey_levels() -> None:
    flat = np.full((4, 6), 0.25)
    np.testing.assert_allclose(scanned(flat, gamma=2.0), 0.0625, atol=1e-6)
    np.testing.assert_allclose(scanned(flat, gain=1.2), 0.3, atol=1e-6)


def test_the_field_of_view_is_offset_and_magnified() -> None:
    image = np.tile(np.arange(8) / 10, (4, 1))
    moved = scanned(image, shift=(2 * 3 / 8, 0.0))  # three of eight columns, in half widths
    np.testing.assert_allclose(moved[:, :5], image[:, 3:], atol=1e-6)
    np.testing.assert_allclose(moved[:, 5:], 0.7, atol=1e-6)
    down = scanned(image.T, shift=(0.0, -2 * 1 / 8))
    np.testing.assert_allclose(down[1:], image.T[:-1], atol=1e-6)
    twice = scanned(image, zoom=2.0)  # the middle half, spread: a step of .1 becomes two of .05
    np.testing.assert_allclose(np.diff(twice, axis=1), 0.05, atol=1e-6)
    assert twice.mean() == pytest.approx(image.mean())


def test_a_frame_darkens_the_border_of_any_format() -> None:
    framed = scanned(np.ones((40, 20)), frame=0.3)
    assert framed[:5].max() < 0.01
    assert framed[:, :2].max() < 0.01
    assert framed[8:-8, 5:-5].min() > 0.99


def test_only_what_exceeds_the_common_unit_is_added() -> None:
    image = np.full((100, 100), 0.5)
    grain = scanned(image, noise=np.hypot(COMMON_SCANNER.noise, 0.05)) - image
    assert grain.std() == pytest.approx(0.05, rel=0.05)
    np.testing.assert_allclose(scanned(image, noise=COMMON_SCANNER.noise / 2), image, atol=1e-6)
    edge = np.tile(np.arange(100) >= 50, (100, 1)).astype(float)
    np.testing.assert_allclose(scanned(edge, blur=COMMON_SCANNER.blur / 2), edge, atol=1e-6)
    blurred = scanned(edge, blur=np.hypot(COMMON_SCANNER.blur, 0.02))[50]
    spread = np.diff(blurred)  # a Gaussian of two pixels
    place = np.arange(99) - 49.0
    assert np.sqrt((spread * place**2).sum()) == pytest.approx(2.0, rel=0.05)
    sharp = scanned(edge, sharpening=0.3)[50]
    assert sharp[45] == 0
    assert 0 <= sharp[49] <= sharp[51] <= 1
    assert scanned(0.5 * edge, sharpening=0.3)[50].max() > 0.55


@given(
    channels=st.integers(1, 3),
    samples=st.integers(8, 50),
    strength=STRENGTHS,
    seed=st.integers(0, 5),
)
def test_a_recording_keeps_its_shape_and_scales_with_its_unit(
    channels: int, samples: int, strength: float, seed: int
) -> None:
    signal = rng(seed).standard_normal((channels, samples)).astype(np.float32)
    sensor = draw_sensor(strength, rng(seed))
    stored = through_sensor(signal, rng(seed), sensor=sensor)
    assert stored.shape == signal.shape
    assert stored.dtype == np.float32
    in_counts = through_sensor(4096 * signal, rng(seed), sensor=sensor)
    np.testing.assert_allclose(in_counts / 4096, stored, atol=1e-4)
    if strength == 0:
        np.testing.assert_array_equal(stored, signal)


def test_devices_turn_recordings_of_one_channel_alone() -> None:
    wave = np.sin(np.arange(60) / 5)[None]
    np.testing.assert_allclose(recorded(wave, sign=-1), -wave, atol=1e-6)
    np.testing.assert_allclose(recorded(np.vstack([wave, wave]), sign=-1)[0], wave[0], atol=1e-6)


def test_filters_drift_and_noise_beyond_the_common_ones_are_added() -> None:
    pulse = np.zeros((1, 600))
    pulse[0, 300] = 1.0  # its spread, 5th to 95th percentile, is 0: nothing but the filter shows
    smooth = recorded(pulse, smoothing_s=np.hypot(COMMON_SENSOR.smoothing_s, 0.05), noise=1.0)[0]
    place = np.arange(600) - 300.0
    assert np.sqrt((smooth * place**2).sum()) == pytest.approx(5.0, rel=0.01)  # .05 s at 100 Hz
    ramp = np.linspace(0, 1, 600)[None]
    noise = recorded(ramp, noise=np.hypot(COMMON_SENSOR.noise, 0.5)) - ramp
    assert noise.std() == pytest.approx(0.45, rel=0.1)  # the spread of the ramp is .9
    drift = recorded(ramp, drift=COMMON_SENSOR.drift + 1.0) - ramp
    assert np.abs(drift).max() == pytest.approx(0.9, rel=0.01)
    assert np.abs(np.diff(drift)).max() < 0.02


SILENT = WritingHabits(
    heading="REPORT:",
    headed=0.0,
    closing="Thank you.",
    closed=0.0,
    negation="negative for",
    denied_so=0.0,
    shortened=0.0,
    typos=0.0,
    capitals=False,
)
TEXT = "No evidence of pneumothorax. The lungs are normal, no longer hazy; no pleural effusion."


@pytest.mark.parametrize(
    ("habits", "expected"),
    [
        ({}, TEXT),
        (
            {"denied_so": 1.0},
            TEXT.replace("No evidence of", "Negative for").replace("no pl", "negative for pl"),
        ),
        (
            {"shortened": 1.0},
            "No evidence of PTX. The lungs are nl, no longer hazy; no pl eff.",
        ),
        ({"headed": 1.0, "closed": 1.0}, f"REPORT: {TEXT} Thank you."),
        ({"capitals": True}, TEXT.upper()),
    ],
)
def test_habits_of_writing(habits: dict[str, Any], expected: str) -> None:
    assert as_written(TEXT, rng(), habits=replace(SILENT, **habits)) == expected


def test_typing_errors_keep_the_letters() -> None:
    written = as_written(TEXT, rng(), habits=replace(SILENT, typos=1.0))
    assert written != TEXT
    assert sorted(written) == sorted(TEXT)


@given(text=st.text(max_size=60), seed=st.integers(0, 20))
def test_no_habit_at_strength_nought_and_some_at_three(text: str, seed: int) -> None:
    assert as_written(text, rng(seed), habits=draw_habits(0.0, rng(seed))) == text
    habits = draw_habits(3.0, rng(seed))
    for share in (habits.headed, habits.closed, habits.denied_so, habits.shortened, habits.typos):
        assert 0 <= share <= 1
    as_written(text, rng(seed), habits=habits)


@pytest.mark.parametrize(
    ("modality", "content"),
    [("image", "a text"), ("signal", "a text"), ("report", np.ones((2, 2)))],
)
def test_a_content_of_another_kind_is_refused(modality: str, content: Any) -> None:
    look = restyled(InMemory(content), modality, "a", "s1", strength=1.0, seed=0)
    with pytest.raises(DataError, match="was found where"):
        look.load()


CONTENTS = {
    "image": np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8),
    "signal": np.sin(np.arange(60, dtype=np.float32) / 5)[None],
    "report": " ".join(["No evidence of pneumothorax with normal sinus rhythm."] * 5),
}


def test_looks_differ_between_sites_and_exams_and_repeat() -> None:
    for modality, content in CONTENTS.items():

        def worn(site: str, study: str, seed: int = 0, of: str = modality, x: Any = content) -> str:
            look = restyled(InMemory(x), of, site, study, strength=1.0, seed=seed)
            assert np.array_equal(look.load(), look.load())
            return repr(look.load())

        assert worn("a", "s1") == worn("a", "s1")
        sites = [worn(site, "s1") for site in "abcdef"]
        assert len(set(sites)) >= 5, "two sites may have no unusual habit"
        assert len({worn(site, "s1", seed=1) for site in "abcdef"} & set(sites)) <= 1


def test_what_has_no_look_is_told_with_its_key() -> None:
    towers = ("image", "mri")
    assert shift_faults(FeatureShift(strength=1.0), towers) == []
    assert shifted_modalities(FeatureShift(strength=1.0), towers) == ("image",)
    assert shifted_modalities(FeatureShift(strength=0.0), towers) == ()
    ((key, message),) = shift_faults(FeatureShift(strength=1.0), ("mri",))
    assert key == ("feature_shift",)
    assert "knows looks of image, report, signal, and the round's model has mri" in message
    settings = FeatureShift(strength=1.0, modalities=("image", "mri", "imag"))
    first, second = shift_faults(settings, towers)
    assert first == (
        ("feature_shift", "modalities", 1),
        "feature_shift.modalities names 'mri', which has no look; valid here: image",
    )
    assert second[0] == ("feature_shift", "modalities", 2)
    assert 'which has no tower in the round; did you mean "image"?' in second[1]


def pool_at(sites: str) -> Pool:
    """A patient a letter, in the part that the case of the letter says: a trains, A asks."""
    return Pool(
        tuple(
            Study(
                f"s{number}",
                f"p{number}",
                {"image": InMemory(CONTENTS["image"]), "report": InMemory(CONTENTS["report"])},
                frozenset({"a"}),
                attributes={"site": letter.lower()},
            )
            for number, letter in enumerate(sites)
        )
    )


def settings_with(partition: Partition, **shift: Any) -> StudySettings:
    study = read_study(ROOT / "configs" / "study" / "phantom_feature_shift.yaml").settings
    update = {"partition": partition, "feature_shift": FeatureShift(**shift)}
    return study.model_copy(update=update)


@pytest.mark.parametrize("natural", [True, False])
def test_queries_wear_the_look_of_a_site_and_public_patients_none(natural: bool) -> None:
    pool = pool_at("aabbccABCD" + "A" * 20)
    roles = Roles(
        training={"a": ("s0",), "b": ("s2",), "c": ("s4",), "public": ("s5",)},
        database={"a": ("s1",), "b": ("s3",), "c": ("s4",), "public": ()},
        queries=tuple(each.study_id for each in pool.studies[6:]),
        public=("s5",),
    )
    partition = Partition() if natural else Partition(scheme="iid", sites=3)
    settings = settings_with(partition, strength=1.0, modalities=("image",))
    held = at_their_sites(settings, ("image", "report"), pool, roles, seed=3).studies

    def worn(study: Study) -> str:
        stored = study.contents["image"].load()
        if np.array_equal(stored, CONTENTS["image"]):
            return "none"
        looks = {
            site: restyled(
                InMemory(CONTENTS["image"]), "image", site, study.study_id, strength=1.0, seed=3
            )
            for site in "abc"
        }
        (site,) = (name for name, look in looks.items() if np.array_equal(look.load(), stored))
        return site

    assert [worn(each) for each in held[:6]] == ["a", "a", "b", "b", "c", "none"]
    assert all(each.contents["report"].load() == CONTENTS["report"] for each in held)
    asking = [worn(each) for each in held[6:]]
    if natural:
        assert asking[:3] == ["a", "b", "c"]
        assert asking[3] in {"a", "b", "c"}, "site d takes no part"
        assert set(asking[4:]) == {"a"}
    else:
        assert set(asking[4:]) == {"a", "b", "c"}


def small_phantom(strength: float | None) -> ResolvedStudy:
    shift = "null" if strength is None else f"{{strength: {strength}}}"
    return read_study(
        ROOT / "configs" / "study" / "phantom_feature_shift.yaml",
        [
            "data={kind: phantom, sites: 3, patients_per_site: 8, image_size_px: 32}",
            "partition={scheme: iid, sites: 3}",
            f"feature_shift={shift}",
            "round.model.towers.image.options={image_size_px: 32}",
            "round.model.towers.report.options={word_features: 64, character_features: 64}",
        ],
    )


def test_strength_nought_is_bit_for_bit_no_shift(tmp_path: Path) -> None:
    assert not differ(small_phantom(None).settings)
    assert not differ(small_phantom(0.0).settings)
    assert differ(small_phantom(0.1).settings)
    none, nought, some = (
        build_consortium(small_phantom(strength), 0, tmp_path / str(strength) / "seed-0")
        for strength in (None, 0.0, 1.0)
    )
    assert none.roles == nought.roles == some.roles
    for modality in ("image", "report"):
        assert torch.equal(none.prepared.inputs[modality], nought.prepared.inputs[modality])
        rows = (none.prepared.inputs[modality] - some.prepared.inputs[modality]).flatten(1)
        changed = rows.abs().amax(dim=1) > 1e-3
        assert changed.float().mean() > 0.6, modality
    again = Consortium.load(tmp_path / "1.0" / "seed-0")
    assert torch.equal(again.queries().inputs["image"], some.queries().inputs["image"])


def test_sweeps_share_no_files_between_looks() -> None:
    path = ROOT / "configs" / "study" / "phantom_feature_shift.yaml"
    first, same, other, fewer = (
        dealt_by(read_study(path, [each]))
        for each in (
            "round.learning.learning_rate=0.01",
            "round.learning.learning_rate=0.02",
            "feature_shift.strength=0.5",
            "missing_modalities={shares: {image: 0.5}}",
        )
    )
    assert first == same
    assert len({first, other, fewer}) == 3


def test_real_recordings_reports_and_radiographs_get_looks(
    data_folder: Path, tmp_path: Path
) -> None:
    for name, modalities in (
        ("ptbxl_sites", ("signal", "report")),
        ("covid_locations", ("image",)),
    ):
        study = read_study(
            ROOT / "configs" / "study" / f"{name}.yaml", ["feature_shift={strength: 1.0}"]
        )
        pool = load_pool(study, 0, tmp_path)
        held = at_their_sites(
            study.settings,
            tuple(study.round.model.towers),
            pool,
            assign_roles(study, pool, 0),
            seed=0,
        )
        for modality in modalities:
            pairs = [
                (before.contents[modality].load(), after.contents[modality].load())
                for before, after in zip(pool.studies[::40], held.studies[::40], strict=True)
                if modality in before.contents
            ]
            assert len(pairs) > 2
            assert sum(not np.array_equal(*pair) for pair in pairs) >= len(pairs) / 2
