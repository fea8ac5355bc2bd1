from __future__ import annotations

import numpy as np
import pytest
import torch
from annotated_types import Le
from skimage.feature import hog

from fedhash.errors import DataError, ModelError
from fedhash.models.hash_model import HashModel, build_model, encode_studies
from fedhash.models.image_hog import oriented_gradients
from fedhash.models.layout import Layout
from fedhash.models.prepared import PreparedStudies
from fedhash.models.relaxed import normalised
from fedhash.models.settings import ModelSettings, TowerSettings
from fedhash.models.tower import TOWERS, Tower

BITS = 24
RNG = np.random.default_rng(0)
IMAGES = [RNG.random((64, 64), dtype=np.float32) for _ in range(5)]
ECGS = [RNG.normal(size=(3, 500)).astype(np.float32) for _ in range(5)]
REPORTS = ["No effusion.", "Small nodule, left.", "Herz vergrößert.", "", "Sinus rhythm"]

CASES = {
    "image_hog": ("image", {}, IMAGES),
    "image_convnet": ("image", {"width": 8}, IMAGES),
    "image_resnet18": ("image", {"image_size_px": 32, "width": 8}, IMAGES),
    "report_ngrams": ("report", {"word_features": 128, "character_features": 64}, REPORTS),
    "signal_convnet": ("signal", {"channels": 3, "samples": 200, "width": 8}, ECGS),
}


def model_of(name: str, seed: int = 1, **options: bool | float | str) -> HashModel:
    modality, defaults, _ = CASES[name]
    tower = TowerSettings(name=name, options={**defaults, **options})
    return build_model(ModelSettings(towers={modality: tower}), BITS, seed)


def tower_of(name: str, **options: bool | float | str) -> Tower:
    return model_of(name, **options).tower(CASES[name][0])


def test_every_tower_is_tested() -> None:
    frozen = {"frozen_image", "frozen_report", "frozen_signal"}  # test_frozen_towers.py
    assert set(CASES) | frozen == set(TOWERS)


@pytest.mark.parametrize("name", CASES)
def test_a_tower_reads_its_modality_and_learns_with_all_parameters(name: str) -> None:
    modality, _, contents = CASES[name]
    model = model_of(name)
    tower = model.tower(modality)
    prepared = tower.prepare(contents)
    assert prepared.shape == (5, *tower.prepared_shape)
    assert prepared.dtype == torch.float32
    assert prepared.isfinite().all()
    assert torch.equal(prepared, tower.prepare(contents))
    outputs = model.encode(modality, prepared)
    assert outputs.shape == (5, BITS)
    weights = torch.randn(BITS, generator=torch.Generator().manual_seed(1))
    (outputs @ weights).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    assert Layout.of(model).size == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", CASES)
def test_a_study_gets_the_same_output_in_any_company(name: str) -> None:
    tower = tower_of(name).train()
    prepared = tower.prepare(CASES[name][2])
    together = tower(prepared)
    for i in range(5):
        torch.testing.assert_close(tower(prepared[i : i + 1])[0], together[i], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_a_model_depends_on_its_seed_and_not_on_the_global_generator(name: str) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = model_of(name, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    layout = Layout.of(one)
    assert (layout.flatten(one) == layout.flatten(model_of(name, seed=3))).all()
    assert (layout.flatten(one) != layout.flatten(model_of(name, seed=4))).any()


@pytest.mark.parametrize("name", CASES)
def test_content_of_the_wrong_kind_is_refused(name: str) -> None:
    tower = tower_of(name)
    wrong = IMAGES[0] if tower.modality == "report" else "a text"
    with pytest.raises(DataError, match="was found where"):
        tower.prepare([wrong])


@pytest.mark.parametrize("name", [name for name in CASES if name != "report_ngrams"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((2, 2, 2), dtype=np.float32), r"shape \(2, 2, 2\) was found where"),
        (np.zeros((0, 4), dtype=np.float32), r"shape \(0, 4\) was found where"),
        (np.full((3, 500), np.nan, dtype=np.float32), "NaN or infinity was found"),
    ],
)
def test_an_array_that_no_tower_can_read_is_refused(
    name: str, content: np.ndarray, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        tower_of(name).prepare([content])


def test_another_tower_leaves_the_first_ones_parameters_as_they_are() -> None:
    towers = {
        modality: TowerSettings(name=name, options=options)
        for name, (modality, options, _) in CASES.items()
    }
    joint = build_model(ModelSettings(towers=towers), BITS, seed=1)
    assert joint.modalities == ("image", "report", "signal")
    alone = model_of("report_ngrams").tower("report")
    for one, other in zip(joint.tower("report").parameters(), alone.parameters(), strict=True):
        assert torch.equal(one, other)


def test_images_of_any_size_are_read() -> None:
    large = [RNG.random((90, 130), dtype=np.float32), np.ones((16, 16), dtype=np.float32)]
    for name in ("image_hog", "image_convnet", "image_resnet18"):
        tower = tower_of(name)
        assert tower.prepare(large).shape == (2, *tower.prepared_shape)


def test_the_default_histograms_are_1152_and_follow_their_options() -> None:
    assert tower_of("image_hog").prepared_shape == (1152,)
    other = tower_of("image_hog", orientations=6, cell_px=16)
    assert other.prepare(IMAGES).shape == (5, 4 * 4 * 6)


def test_a_ramp_has_one_orientation_and_its_negative_the_opposite() -> None:
    ramp = np.tile(np.linspace(0, 1, 16, dtype=np.float32), (16, 1))
    to_the_right = oriented_gradients(ramp, orientations=4, cell_px=8).reshape(4, 4)
    to_the_left = oriented_gradients(ramp[:, ::-1].copy(), orientations=4, cell_px=8).reshape(4, 4)
    downwards = oriented_gradients(ramp.T.copy(), orientations=4, cell_px=8).reshape(4, 4)
    for histogram, orientation in ((to_the_right, 0), (downwards, 1), (to_the_left, 2)):
        expected = np.zeros((4, 4), np.float32)
        expected[:, orientation] = 1 / 15  # the slope of the ramp, per pixel
        np.testing.assert_allclose(histogram, expected, atol=1e-6)


def test_cells_are_in_reading_order() -> None:
    image = np.zeros((16, 16), np.float32)
    image[2:6, 10:14] = 1.0  # a square in the upper right cell
    cells = oriented_gradients(image, orientations=4, cell_px=8).reshape(4, 4).sum(axis=1)
    assert cells[1] > 0
    assert (cells[[0, 2, 3]] == 0).all()


def test_the_histograms_are_those_of_scikit_image_when_orientations_are_folded() -> None:
    image = RNG.random((64, 64), dtype=np.float32)
    image[[0, -1], :] = image[[1, -2], :]  # the two differ in how they treat the rim
    ours = oriented_gradients(image, orientations=18, cell_px=8).reshape(8, 8, 2, 9).sum(axis=2)
    theirs = hog(
        image, orientations=9, pixels_per_cell=(8, 8), cells_per_block=(8, 8), block_norm="L1"
    ).reshape(8, 8, 9)
    inner = (slice(1, 7), slice(1, 7))
    ratio = (ours[inner] / ours[inner].sum()) / (theirs[inner] / theirs[inner].sum())
    np.testing.assert_allclose(ratio, 1.0, atol=1e-3)


def test_a_scanners_gain_and_offset_do_not_matter_to_the_convnet() -> None:
    tower = tower_of("image_convnet")
    brighter = [0.2 + 0.5 * image for image in IMAGES]
    torch.testing.assert_close(tower.prepare(brighter), tower.prepare(IMAGES), atol=1e-4, rtol=0)


def test_a_signals_unit_and_offset_do_not_matter() -> None:
    tower = tower_of("signal_convnet")
    microvolts = [1000 * ecg + 400 for ecg in ECGS]
    torch.testing.assert_close(tower.prepare(microvolts), tower.prepare(ECGS), atol=1e-3, rtol=0)


def test_one_outlier_does_not_flatten_a_signal() -> None:
    jumped = ECGS[0].copy()
    jumped[0, 0] = 1e6
    tower = tower_of("signal_convnet", samples=500)
    clean, outlying = tower.prepare([ECGS[0], jumped])
    torch.testing.assert_close(clean[:, 1:], outlying[:, 1:], atol=0.05, rtol=0)
    assert outlying[0, 0] == 10


def test_a_flat_signal_and_a_black_image_are_read() -> None:
    flat = tower_of("signal_convnet").prepare([np.zeros((3, 500), dtype=np.float32)])
    black = tower_of("image_convnet").prepare([np.zeros((64, 64), dtype=np.float32)])
    assert flat.abs().max() == black.abs().max() == 0


def test_a_signal_with_other_channels_is_refused() -> None:
    with pytest.raises(DataError, match=r"a signal of 12 channels was found, the tower reads 3"):
        tower_of("signal_convnet").prepare([np.ones((12, 500), dtype=np.float32)])


def test_negation_and_word_order_change_a_reports_features() -> None:
    tower = tower_of("report_ngrams", word_features=2048, character_features=2048)
    bags = tower.prepare(["effusion, no nodule", "nodule, no effusion", ""])
    assert not torch.equal(bags[0], bags[1])
    torch.testing.assert_close(bags[:2].norm(dim=1), torch.full((2,), 2**0.5))
    assert bags[2].abs().max() == 0


@pytest.mark.parametrize(
    ("modality", "tower", "message"),
    [
        (
            "image",
            TowerSettings(name="vit"),
            "'vit' .* valid here: frozen_image, image_conv",
        ),
        (
            "report",
            TowerSettings(name="image_hog"),
            "'image_hog' .* 'report'; valid here: frozen_report, report_n",
        ),
        ("video", TowerSettings(name="image_hog"), "'video'; valid here: nothing"),
        (
            "image",
            TowerSettings(name="image_hog", options={"cells": 8}),
            "option cells of tower image_hog: Extra inputs .* it takes: cell_px, dropout",
        ),
        (
            "image",
            TowerSettings(name="image_hog", options={"cell_px": "8"}),
            "option cell_px of tower image_hog: Input should be a valid integer",
        ),
        (
            "image",
            TowerSettings(name="image_hog", options={"cell_px": 10}),
            "cells of 10 px do not tile 64 px",
        ),
    ],
)
def test_a_tower_that_cannot_be_built_is_explained(
    modality: str, tower: TowerSettings, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        build_model(ModelSettings(towers={modality: tower}), BITS, seed=0)


@pytest.mark.parametrize(
    ("name", "option"),
    [(name, option) for name in CASES for option in TOWERS[name].Options.model_fields],
)
def test_every_option_has_an_upper_bound(name: str, option: str) -> None:
    with pytest.raises(ModelError, match=f"option {option} of tower {name}: .* less than"):
        model_of(name, **{option: 10**12})


def test_options_that_are_large_together_are_refused() -> None:
    with pytest.raises(ModelError, match="4718592 features of an image are more than 65536"):
        model_of("image_hog", image_size_px=1024, cell_px=4, orientations=72)


@pytest.mark.parametrize("name", CASES)
def test_the_largest_model_that_options_allow_can_be_sent(name: str) -> None:
    kind = TOWERS[name]
    bounds = {
        option: next(each.le for each in field.metadata if isinstance(each, Le))
        for option, field in kind.Options.model_fields.items()
        if field.annotation is int
    }
    if name == "image_hog":
        bounds |= {"cell_px": 32, "orientations": 64}  # 65536 features
    with torch.device("meta"):  # shapes without memory
        tower = kind(kind.Options(**bounds), 256)
    assert sum(parameter.numel() for parameter in tower.parameters()) < 90e6


def test_an_invalid_code_length_is_refused() -> None:
    settings = ModelSettings(towers={"report": TowerSettings(name="report_ngrams")})
    with pytest.raises(ModelError, match="20 bits was asked for"):
        build_model(settings, 20, seed=0)


def test_options_keep_their_types() -> None:
    options = {"flag": True, "count": 3, "share": 0.5, "kind": "mean"}
    settings = ModelSettings(towers={"image": TowerSettings(name="x", options=options)})
    again = ModelSettings.model_validate_json(settings.model_dump_json())
    assert again == settings
    assert [type(value) for value in again.towers["image"].options.values()] == [
        *(bool, int, float, str)
    ]


def test_relaxed_codes_keep_the_signs_inside_the_unit_ball() -> None:
    outputs = torch.tensor([[3.0, -4.0], [0.0, 0.0], [1e-3, -1e3]])
    relaxed = normalised(outputs, kappa=0.1)
    assert torch.equal(relaxed.sign(), outputs.sign())
    assert (relaxed.norm(dim=1) <= 1).all()
    assert relaxed[0].tolist() == pytest.approx([0.6, -0.8], abs=1e-3)


def test_studies_are_encoded_in_blocks_without_gradients() -> None:
    model = model_of("report_ngrams")
    inputs = model.tower("report").prepare(REPORTS)
    prepared = PreparedStudies(
        study_ids=tuple("abcde"),
        patient_ids=tuple("abcde"),
        labels=torch.zeros(5, 2, dtype=torch.int8),
        inputs={"report": inputs},
        present={"report": torch.ones(5, dtype=torch.bool)},
        attributes=({},) * 5,
    )
    relaxed = encode_studies(model, prepared, "report", batch=2)
    assert relaxed.dtype == np.float32
    expected = normalised(model.encode("report", inputs)).detach().numpy()
    np.testing.assert_allclose(relaxed, expected, atol=1e-6)
    with pytest.raises(ModelError, match=r"no tower for 'image', only for report"):
        encode_studies(model, prepared, "image")
    assert encode_studies(model, prepared.select([]), "report").shape == (0, BITS)
