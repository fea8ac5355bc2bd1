"""PPG-BP: finger photoplethysmograms with blood pressure and diagnoses, from one hospital.

Source: Y. Liang et al., Scientific Data 5:180020 (2018), doi:10.6084/m9.figshare.5459299.
Expected files: ``metadata.csv`` and ``ppg1000hz.npz`` (ppg int16 [657, 2100], 1 kHz, 12 bit).

Choices: every study has one of the four blood pressure stages and may have diseases besides;
"Diabetes" and "Type 2 Diabetes" are one finding, "insufficiency of cerebral blood supply" counts
as cerebrovascular disease. A disease that the table leaves blank is negative. The three segments
of a subject are three studies of one patient. No split is published.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fedhash.data.manifest import ManifestRow
from fedhash.data.recipes.recipe import Recipe, Skipped, age_band, read_table, register_recipe

__all__ = ["PpgBp"]

_STAGE = {
    "Normal": "normal_blood_pressure",
    "Prehypertension": "prehypertension",
    "Stage 1 hypertension": "hypertension_stage_1",
    "Stage 2 hypertension": "hypertension_stage_2",
}
_DISEASES = ("diabetes", "cerebral_infarction", "cerebrovascular_disease")  # columns and findings


@register_recipe
class PpgBp(Recipe):
    """PPG segments: blood pressure stage, diabetes and diseases of the brain's vessels."""

    name = "ppg_bp"
    findings = (*_STAGE.values(), *_DISEASES)
    modalities = ("signal",)
    licence = "CC0 1.0"

    def rows(self, source: Path) -> Iterator[ManifestRow | Skipped]:
        """One study a segment."""
        for row in read_table(source / "metadata.csv"):
            diseases = [disease for disease in _DISEASES if row[disease]]
            yield ManifestRow(
                study_id=f"{row['subject_ID']}-{row['segment']}",
                patient_id=row["subject_ID"],
                positive=[_STAGE[row["hypertension"]], *diseases],
                contents={"signal": f"{source / 'ppg1000hz.npz'}#ppg/{row['row']}"},
                attributes={"sex": row["sex"].lower(), "age_band": age_band(row["age_year"])},
            )
