"""PTB-XL, its first 500 records: twelve-lead ECG with the cardiologist's report, four sites.

Source: P. Wagner et al., Scientific Data 7:154 (2020), doi:10.13026/kfzx-aw45.
Expected files: ``metadata.csv`` and ``ecg100.npz`` (ecg int16 [500, 1000, 12], microvolt, 100 Hz).

Choices: findings are the five diagnostic superclasses, a record may have several; the 12 records
without one are left out; folds 9 and 10 are the test split and fold 8 is for validation, so that
the small subset has test records enough. The label can largely be read from the report.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fedhash.data.manifest import ManifestRow
from fedhash.data.recipes.recipe import Recipe, Skipped, age_band, read_table, register_recipe

__all__ = ["PtbxlSubset"]

_SPLIT = {"8": "val", "9": "test", "10": "test"}  # the other folds train
_SEX = {"0": "male", "1": "female"}  # as PTB-XL codes it


@register_recipe
class PtbxlSubset(Recipe):
    """ECG and report: normal, infarction, ST/T change, conduction disturbance, hypertrophy."""

    name = "ptbxl_subset"
    findings = ("norm", "mi", "sttc", "cd", "hyp")
    modalities = ("signal", "report")
    licence = "CC BY 4.0"

    def rows(self, source: Path) -> Iterator[ManifestRow | Skipped]:
        """One study a record; a record without a superclass is skipped."""
        for row in read_table(source / "metadata.csv"):
            if not row["superclass"]:
                yield Skipped("no diagnostic superclass")
                continue
            yield ManifestRow(
                study_id=f"ecg-{row['ecg_id']}",
                patient_id=str(int(float(row["patient_id"]))),
                positive=row["superclass"].lower().split(";"),
                contents={
                    "signal": f"{source / 'ecg100.npz'}#ecg/{row['row']}",
                    "report": row["report"],
                },
                attributes={
                    "site": f"site-{int(float(row['site']))}",
                    "split": _SPLIT.get(row["strat_fold"], "train"),
                    "sex": _SEX[row["sex"]],
                    "age_band": age_band(row["age"]),
                    "device": row["device"].strip(),
                },
            )
