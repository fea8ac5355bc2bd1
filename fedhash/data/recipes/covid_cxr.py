"""COVID-19 image data collection: radiographs and CT slices with the case's clinical note.

Source: J. P. Cohen et al., arXiv:2006.11988 (2020).
Expected files: ``metadata.csv`` and ``images/*.png``.

Choices: the 13 published finding strings become four findings, for most causes of pneumonia have
one patient each: the named bacteria are `bacterial_pneumonia`; every other or unknown cause, and
respiratory distress, is `other_lung_disease`; a "Pneumonia" of no named cause leaves bacteria
uncertain. "No Finding" always is an early image of a patient with COVID-19. Notes are as published
and often name the disease. No split is published.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fedhash.data.manifest import ManifestRow
from fedhash.data.recipes.recipe import Recipe, Skipped, age_band, read_table, register_recipe

__all__ = ["CovidCxr"]

_FINDINGS = {
    "No Finding": ("no_finding",),
    "COVID-19": ("covid_19",),
    "COVID-19, ARDS": ("covid_19", "other_lung_disease"),
    "Bacterial": ("bacterial_pneumonia",),
    "Klebsiella": ("bacterial_pneumonia",),
    "Legionella": ("bacterial_pneumonia",),
    "Mycoplasma Bacterial Pneumonia": ("bacterial_pneumonia",),
    "ARDS": ("other_lung_disease",),
    "Influenza": ("other_lung_disease",),
    "Lipoid": ("other_lung_disease",),
    "Pneumocystis": ("other_lung_disease",),
    "Pneumonia": ("other_lung_disease",),
    "Varicella": ("other_lung_disease",),
}
_SEX = {"F": "female", "M": "male", "": ""}


@register_recipe
class CovidCxr(Recipe):
    """Chest images and notes: COVID-19, bacterial pneumonia, other lung disease, no finding."""

    name = "covid_cxr"
    findings = ("no_finding", "covid_19", "bacterial_pneumonia", "other_lung_disease")
    modalities = ("image", "report")
    licence = "CC BY-NC-SA 4.0"

    def rows(self, source: Path) -> Iterator[ManifestRow | Skipped]:
        """One study an image; the images of a patient may share a note."""
        for row in read_table(source / "metadata.csv"):
            yield ManifestRow(
                study_id=Path(row["image"]).stem,
                patient_id=row["patientid"],
                positive=_FINDINGS[row["finding"]],
                uncertain=["bacterial_pneumonia"] if row["finding"] == "Pneumonia" else [],
                contents={
                    "image": str(source / "images" / row["image"]),
                    "report": row["clinical_notes"],
                },
                attributes={
                    "site": row["location"] or "unknown",
                    "country": row["location"].rpartition(", ")[2] or "unknown",
                    "modality": row["modality"],
                    "view": row["view"],
                    "sex": _SEX[row["sex"]],
                    "age_band": age_band(row["age"]),
                },
            )
