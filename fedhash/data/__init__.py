"""Studies: what one exam holds, where it comes from, and how patients are split.

The recipes of public data sets are in `fedhash.data.recipes`, the generator of synthetic patients
in `fedhash.data.phantom`.
"""

from __future__ import annotations

from fedhash.data.manifest import Manifest, ManifestRow, read_manifest, write_manifest
from fedhash.data.modalities import MODALITIES, Modality, register_modality
from fedhash.data.splits import published_split, split_of_patient, split_patients
from fedhash.data.study import Content, InMemory, Study, label_matrix

__all__ = [
    "MODALITIES",
    "Content",
    "InMemory",
    "Manifest",
    "ManifestRow",
    "Modality",
    "Study",
    "label_matrix",
    "published_split",
    "read_manifest",
    "register_modality",
    "split_of_patient",
    "split_patients",
    "write_manifest",
]
