"""Kermany: 5,856 chest radiographs of children, from one hospital.

Source: D. Kermany, K. Zhang, M. Goldbaum, doi:10.17632/rscbjbr9sj (2018); Cell 172:1122-1131.
Expected files: ``metadata.csv`` and ``images64.npz`` (images uint8 [5856, 64, 64]).

Choices: the 32 images that are identical to an earlier one are left out; the split is the
patient-disjoint one of ``metadata.csv``, for the publishers' own puts 170 ids into training and
test. Numbers of normal studies serve as patient ids, as the set names no patients there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fedhash.data.manifest import ManifestRow
from fedhash.data.recipes.recipe import Recipe, Skipped, read_table, register_recipe

__all__ = ["KermanyCxr"]

_FINDING = {
    "normal": "no_finding",
    "bacteria": "bacterial_pneumonia",
    "virus": "viral_pneumonia",
}


@register_recipe
class KermanyCxr(Recipe):
    """Chest radiographs of children with bacterial, viral or no pneumonia."""

    name = "kermany_cxr"
    findings = ("no_finding", "bacterial_pneumonia", "viral_pneumonia")
    modalities = ("image",)
    licence = "CC BY 4.0"

    def rows(self, source: Path) -> Iterator[ManifestRow | Skipped]:
        """One study an image; a duplicate is skipped."""
        for row in read_table(source / "metadata.csv"):
            if row["duplicate_of"]:
                yield Skipped("identical to another image")
                continue
            yield ManifestRow(
                study_id=Path(row["filename"]).stem,
                patient_id=row["patient_id"],
                positive=[_FINDING[row["label"]]],
                contents={"image": f"{source / 'images64.npz'}#images/{row['row']}"},
                attributes={"split": row["split"]},
            )
