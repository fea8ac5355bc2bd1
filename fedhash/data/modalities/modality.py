"""The base of all modalities and their registry.

Rules: a cell is turned into content without keeping the loaded value, so a manifest of many large
images fits in memory; and it is loaded once while the manifest is read, so unreadable content is
found then and not in the middle of training.

    @register_modality
    class Volume(Modality):
        name = "volume"
        def content(self, cell, folder):
            return VolumeFile(resolve(cell, folder))
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, TypeVar

from fedhash.data.study import Content
from fedhash.errors import DataError

__all__ = ["MODALITIES", "Modality", "register_modality"]


class Modality(ABC):
    """One kind of content that a study may hold.

    Attributes:
        name: The manifest's column and the key in `Study.contents`.
    """

    name: ClassVar[str]

    @abstractmethod
    def content(self, cell: str, folder: Path) -> Content:
        """The content that a manifest cell names, not loaded yet.

        Args:
            cell: A non-empty cell of this modality's column.
            folder: The manifest's folder, which relative paths start from.

        Raises:
            DataError: The cell does not name content of this modality.
        """

    def read(self, cell: str, folder: Path) -> Content:
        """The content that a manifest cell names, after loading it once as a check.

        Raises:
            DataError: The cell does not name content of this modality, or it cannot be loaded.
        """
        content = self.content(cell, folder)
        content.load()
        return content


MODALITIES: dict[str, Modality] = {}

ModalityClass = TypeVar("ModalityClass", bound=type[Modality])


def register_modality(modality: ModalityClass) -> ModalityClass:
    """Class decorator that makes a modality known under its name.

    Raises:
        DataError: The name is taken.
    """
    if modality.name in MODALITIES:
        raise DataError(f"a modality named {modality.name!r} is registered already; rename one")
    MODALITIES[modality.name] = modality()
    return modality
