"""Recipes against the real data sets; row counts are those of the sets' own descriptions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedhash.data import Manifest, published_split, read_manifest
from fedhash.data.recipes import RECIPES, Recipe, RecipeReport, register_recipe
from fedhash.data.recipes.recipe import read_table
from fedhash.errors import DataError

Written = tuple[RecipeReport, Manifest]


@pytest.fixture(scope="module")
def written(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Written]:
    """Write a recipe's manifest and read it back, once for all tests of the set."""
    kept: dict[str, Written] = {}

    def write(name: str) -> Written:
        if name not in kept:
            if not (data_folder / name).is_dir():
                pytest.skip(f"the data set {name} is not in {data_folder}")
            recipe = RECIPES[name]
            report = recipe.write(data_folder / name, tmp_path_factory.mktemp(name))
            manifest = read_manifest(report.manifest, recipe.findings, recipe.modalities)
            kept[name] = report, manifest
        return kept[name]

    return write


def patients(manifest: Manifest) -> int:
    return len({study.patient_id for study in manifest.studies})


def positives(manifest: Manifest) -> dict[str, int]:
    return dict(Counter(finding for study in manifest.studies for finding in study.positive))


def attribute(manifest: Manifest, name: str) -> dict[str | None, int]:
    return dict(Counter(study.attributes.get(name) for study in manifest.studies))


@pytest.mark.parametrize(
    ("name", "rows", "skipped", "patient_count"),
    [
        ("kermany_cxr", 5_824, {"identical to another image": 32}, 3_117),
        ("ptbxl_subset", 488, {"no diagnostic superclass": 12}, 460),
        ("covid_cxr", 149, {}, 55),
        ("vqarad", 314, {"no questions and no organ": 1}, 314),
        ("ppg_bp", 657, {}, 219),
    ],
)
def test_every_row_is_a_study_or_is_counted(
    written: Callable[..., Written],
    name: str,
    rows: int,
    skipped: dict[str, int],
    patient_count: int,
) -> None:
    report, manifest = written(name)
    assert (report.rows, report.skipped) == (rows, skipped)
    assert manifest.problems == ()
    assert len(manifest.studies) == rows
    assert patients(manifest) == patient_count
    assert positives(manifest).keys() == set(RECIPES[name].findings)


def test_kermany(written: Callable[..., Written], data_folder: Path) -> None:
    _, manifest = written("kermany_cxr")
    # Of 1,583, 2,780 and 1,493 published images, without the 32 identical ones.
    assert positives(manifest) == {
        "no_finding": 1_579,
        "bacterial_pneumonia": 2_760,
        "viral_pneumonia": 1_485,
    }
    splits = published_split(manifest.studies)
    assert {name: len(studies) for name, studies in splits.items()} == {
        "train": 4_693,
        "val": 530,
        "test": 601,
    }
    with np.load(data_folder / "kermany_cxr" / "images64.npz") as arrays:
        expected = arrays["images"][5_855].astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(manifest.studies[-1].contents["image"].load(), expected)


def test_ptbxl(written: Callable[..., Written]) -> None:
    _, manifest = written("ptbxl_subset")
    assert positives(manifest) == {"norm": 297, "mi": 73, "sttc": 96, "cd": 78, "hyp": 40}
    assert attribute(manifest, "site") == {"site-0": 249, "site-1": 161, "site-2": 17, "site-3": 61}
    assert {name: len(part) for name, part in published_split(manifest.studies).items()} == {
        "train": 308,
        "val": 44,
        "test": 136,
    }
    assert sum("report" not in study.contents for study in manifest.studies) == 1
    first = manifest.studies[0]
    assert first.contents["signal"].load().shape == (12, 1000)
    assert first.contents["report"].load() == "sinusrhythmus periphere niederspannung"


def test_covid(written: Callable[..., Written]) -> None:
    _, manifest = written("covid_cxr")
    assert positives(manifest) == {
        "no_finding": 6,
        "covid_19": 95,
        "bacterial_pneumonia": 21,
        "other_lung_disease": 28,
    }
    assert attribute(manifest, "modality") == {"X-ray": 100, "CT": 49}
    assert len(attribute(manifest, "site")) == 38
    countries = attribute(manifest, "country")
    assert len(countries) == 17
    assert countries["unknown"] == attribute(manifest, "site")["unknown"]
    assert sum("bacterial_pneumonia" in study.uncertain for study in manifest.studies) == 11
    assert len({study.contents["report"].load() for study in manifest.studies}) == 120


def test_vqarad(written: Callable[..., Written]) -> None:
    _, manifest = written("vqarad")
    assert positives(manifest) == {"head": 103, "chest": 107, "abdomen": 104}
    text = manifest.studies[0].contents["report"].load()
    assert "Is the heart enlarged? No\n" in text


def test_ppg(written: Callable[..., Written]) -> None:
    _, manifest = written("ppg_bp")
    found = positives(manifest)  # three segments a subject
    assert found["normal_blood_pressure"] == 3 * 80
    assert found["prehypertension"] == 3 * 85
    assert found["hypertension_stage_1"] == 3 * 34
    assert found["hypertension_stage_2"] == 3 * 20
    assert attribute(manifest, "sex") == {"female": 3 * 115, "male": 3 * 104}
    assert manifest.studies[0].contents["signal"].load().shape == (1, 2100)


def test_fashion_mnist(data_folder: Path, tmp_path: Path) -> None:
    recipe = RECIPES["fashion_mnist"]
    report = recipe.write(data_folder / recipe.name, tmp_path)
    assert (report.rows, report.skipped) == (70_000, {})
    table = read_table(report.manifest)
    assert set(Counter(row["positive"] for row in table).values()) == {7_000}
    splits = Counter(row["attr.split"] for row in table)
    assert splits["test"] == 10_000
    assert splits["train"] + splits["val"] == 60_000
    # Reading checks every image, so a hundredth stands for the whole.
    header, *lines = report.manifest.read_text().splitlines(keepends=True)
    report.manifest.write_text("".join([header, *lines[::100]]))
    manifest = read_manifest(report.manifest, recipe.findings, recipe.modalities)
    assert (len(manifest.studies), manifest.problems) == (700, ())
    mean = np.mean([study.contents["image"].load().mean() for study in manifest.studies])
    assert mean * 255 == pytest.approx(72.94, rel=0.05)  # the mean of all that is published


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_folder_without_the_data_set_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"does not hold {name} as its recipe expects.*the folder"):
        RECIPES[name].write(tmp_path, tmp_path / "target")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    "table", ["", "row,filename\n0,a.png\n", "row,filename\n0\n", f"row\n{'x' * 140_000}\n"]
)
def test_a_table_of_another_form_is_refused(tmp_path: Path, table: str) -> None:
    (tmp_path / "metadata.csv").write_text(table)
    with pytest.raises(DataError, match="does not hold kermany_cxr as its recipe expects"):
        RECIPES["kermany_cxr"].write(tmp_path, tmp_path / "target")


def test_a_recipe_name_is_taken_once() -> None:
    class Twin(Recipe):
        name = "ppg_bp"

        rows = RECIPES["ppg_bp"].rows

    with pytest.raises(DataError, match="a recipe named 'ppg_bp' is registered already"):
        register_recipe(Twin)
