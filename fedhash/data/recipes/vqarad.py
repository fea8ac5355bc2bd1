"""VQA-RAD: radiology images with clinicians' questions and answers.

Source: J. J. Lau et al., Scientific Data 5:180251 (2018), https://osf.io/89kps/.
Expected files: ``qa.jsonl`` and ``images/*.png``.

Choices: the set has no findings per image, so the *organ* that the image shows stands for one: a
test of retrieval across modalities and not of diagnosis. The text is all questions with their
answers, one pair a line, and often names the organ. The one image without questions is left out.
The set names no patients, so every image counts as its own; its published split is one of
questions and not of images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from fedhash.data.manifest import ManifestRow
from fedhash.data.recipes.recipe import Recipe, Skipped, register_recipe

__all__ = ["VqaRad"]

_ORGAN = {"HEAD": "head", "CHEST": "chest", "ABD": "abdomen"}


@register_recipe
class VqaRad(Recipe):
    """Images and question-answer text of head, chest and abdomen."""

    name = "vqarad"
    findings = ("head", "chest", "abdomen")
    modalities = ("image", "report")
    licence = "CC0 1.0"

    def rows(self, source: Path) -> Iterator[ManifestRow | Skipped]:
        """One study an image; the image without questions is skipped."""
        lines = (source / "qa.jsonl").read_text(encoding="utf-8").splitlines()
        for image in map(json.loads, lines):
            if not image["qa"]:
                yield Skipped("no questions and no organ")
                continue
            pairs = [f"{pair['question']} {pair['answer']}" for pair in image["qa"]]
            yield ManifestRow(
                study_id=image["image_id"],
                patient_id=image["image_id"],
                positive=[_ORGAN[image["organ"]]],
                contents={
                    "image": str(source / "images" / image["image"]),
                    "report": "\n".join(pairs),
                },
            )
