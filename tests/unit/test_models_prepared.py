from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fedhash.data.study import InMemory, Study
from fedhash.errors import DataError
from fedhash.models.hash_model import HashModel, build_model
from fedhash.models.prepared import PreparedStudies, prepare_studies
from fedhash.models.settings import ModelSettings, TowerSettings

FINDINGS = ("no_finding", "effusion")
RNG = np.random.default_rng(0)
IMAGES = [RNG.random((32, 32), dtype=np.float32) for _ in range(300)]


@pytest.fixture(scope="module")
def model() -> HashModel:
    options = {"word_features": 16, "character_features": 16}
    towers = {
        "image": TowerSettings(name="image_convnet", options={"image_size_px": 32}),
        "report": TowerSettings(name="report_ngrams", options=options),
    }
    return build_model(ModelSettings(towers=towers), code_bits=16, seed=0)


def study(number: int) -> Study:
    """Every third study has no report, every fifth no image."""
    contents = {}
    if number % 5:
        contents["image"] = InMemory(IMAGES[number])
    if number % 3:
        contents["report"] = InMemory(f"report {number}")
    return Study(
        f"s{number}",
        f"p{number // 2}",
        contents,
        positive=frozenset({FINDINGS[number % 2]}),
        uncertain=frozenset({"effusion"} if number % 4 == 0 else ()),
        attributes={"site": f"site-{number % 2}"},
    )


@pytest.fixture(scope="module")
def prepared(model: HashModel) -> PreparedStudies:
    return prepare_studies(model, [study(number) for number in range(10)], FINDINGS)


def same(one: PreparedStudies, other: PreparedStudies) -> bool:
    names = set(one.inputs)
    return (
        (one.study_ids, one.patient_ids, one.attributes)
        == (other.study_ids, other.patient_ids, other.attributes)
        and torch.equal(one.labels, other.labels)
        and names == set(other.inputs) == set(one.present) == set(other.present)
        and all(torch.equal(one.inputs[name], other.inputs[name]) for name in names)
        and all(torch.equal(one.present[name], other.present[name]) for name in names)
    )


def test_rows_are_the_towers_own_and_missing_ones_are_zero(
    model: HashModel, prepared: PreparedStudies
) -> None:
    assert len(prepared) == 10
    for number in range(10):
        for modality in ("image", "report"):
            row = prepared.inputs[modality][number]
            contents = study(number).contents
            assert prepared.present[modality][number].item() == (modality in contents)
            if modality in contents:
                (expected,) = model.tower(modality).prepare([contents[modality].load()])
                torch.testing.assert_close(row, expected)
            else:
                assert row.abs().max() == 0
    assert prepared.labels[:5].tolist() == [[1, -1], [0, 1], [1, 0], [0, 1], [1, -1]]
    assert prepared.patient_ids[:3] == ("p0", "p0", "p1")
    assert prepared.attributes[1] == {"site": "site-1"}


def test_blocks_do_not_show(model: HashModel) -> None:
    studies = [study(number) for number in range(300)]
    whole = prepare_studies(model, studies, FINDINGS)
    assert same(whole.select(range(280, 300)), prepare_studies(model, studies[280:], FINDINGS))


def test_a_modality_that_no_study_has_is_prepared_as_absent(model: HashModel) -> None:
    only_image = prepare_studies(model, [study(3)], FINDINGS)
    assert only_image.inputs["report"].shape == (1, 32)
    assert not only_image.present["report"].any()
    assert len(prepare_studies(model, [], FINDINGS)) == 0


def test_studies_are_selected_in_the_order_asked_for(prepared: PreparedStudies) -> None:
    assert prepared.select([7, 2, 2]).study_ids == ("s7", "s2", "s2")


def test_a_file_gives_back_what_was_saved(prepared: PreparedStudies, tmp_path: Path) -> None:
    path = tmp_path / "prepared.safetensors"
    prepared.select([0]).save(path)
    prepared.save(path)
    assert same(PreparedStudies.load(path), prepared)
    assert [file.name for file in tmp_path.iterdir()] == ["prepared.safetensors"]


@pytest.mark.parametrize("kept_share", [0.0, 0.3, 0.9])
def test_a_damaged_file_is_refused(
    prepared: PreparedStudies, tmp_path: Path, kept_share: float
) -> None:
    path = tmp_path / "prepared.safetensors"
    prepared.save(path)
    path.write_bytes(path.read_bytes()[: int(kept_share * path.stat().st_size)])
    with pytest.raises(DataError, match=r"does not hold prepared studies .* prepare again"):
        PreparedStudies.load(path)


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="remove it and prepare again"):
        PreparedStudies.load(tmp_path / "absent")


def test_tensors_of_another_kind_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"labels": torch.zeros(2)}, tmp_path / "other")
    with pytest.raises(DataError, match="does not hold prepared studies"):
        PreparedStudies.load(tmp_path / "other")
