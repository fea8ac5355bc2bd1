"""Fashion-MNIST: 70,000 images of clothes in ten classes, the general benchmark.

Source: H. Xiao, K. Rasul, R. Vollgraf, arXiv:1708.07747 (2017).
Expected file: ``fashion_mnist.npz`` (train_images uint8 [60000, 28, 28], train_labels, test_*).

Choices: every image counts as a patient of its own; a twelfth of the published training images,
drawn by hash, is the validation split, so that about 55,000 train.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fedhash.data.manifest import ManifestRow
from fedhash.data.recipes.recipe import Recipe, Skipped, register_recipe
from fedhash.data.splits import split_of_patient

__all__ = ["FashionMnist"]

_TRAINING_SHARES = {"train": 11 / 12, "val": 1 / 12}


@register_recipe
class FashionMnist(Recipe):
    """Small grey images of clothes."""

    name = "fashion_mnist"
    # In the order of the published labels 0 to 9.
    findings = (
        "t_shirt",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle_boot",
    )
    modalities = ("image",)
    licence = "MIT"

    def rows(self, source: Path) -> Iterator[ManifestRow | Skipped]:
        """One study an image."""
        path = source / "fashion_mnist.npz"
        for published in ("train", "test"):
            with np.load(path, allow_pickle=False) as arrays:
                labels = arrays[f"{published}_labels"]
            for number, label in enumerate(labels):
                image = f"{published}-{number}"
                split = published
                if published == "train":
                    split = split_of_patient(image, _TRAINING_SHARES, seed=0)
                yield ManifestRow(
                    study_id=image,
                    patient_id=image,
                    positive=[self.findings[label]],
                    contents={"image": f"{path}#{published}_images/{number}"},
                    attributes={"split": split},
                )
