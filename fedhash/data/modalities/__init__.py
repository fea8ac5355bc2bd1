"""The registry of modalities: what a manifest cell of each kind names, and how it is loaded.

A new modality is one class in one file of this package, and its import below.

    >>> MODALITIES["image"].read("s1.png", Path("/data/site"))   # checked once, loaded on demand
    ImageFile(path=PosixPath('/data/site/s1.png'))
"""

from __future__ import annotations

from fedhash.data.modalities.image import Image
from fedhash.data.modalities.modality import MODALITIES, Modality, register_modality
from fedhash.data.modalities.report import Report
from fedhash.data.modalities.signal import Signal

__all__ = ["MODALITIES", "Image", "Modality", "Report", "Signal", "register_modality"]
