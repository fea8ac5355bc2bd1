"""Reports: free text, written in the cell itself or in a file of its own.

Cells: the text, or ``@report.txt`` for a UTF-8 file. A text that itself starts with "@" has to
stand in a file.

    >>> MODALITIES["report"].read("No pleural effusion.", Path("/data/site")).load()
    'No pleural effusion.'
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedhash.data.modalities._references import resolve
from fedhash.data.modalities.modality import Modality, register_modality
from fedhash.data.study import Content, InMemory
from fedhash.errors import DataError

__all__ = ["Report", "ReportFile"]

# What Python's csv reader takes for one cell; the longest radiology reports have a tenth of it.
_LARGEST_REPORT_BYTES = 131_072


@dataclass(frozen=True, slots=True)
class ReportFile:
    """A UTF-8 text file."""

    path: Path

    def load(self) -> str:
        """The text without the white space around it.

        Raises:
            DataError: The file cannot be read, is not UTF-8, too long or empty.
        """
        try:
            with self.path.open("rb") as file:
                data = file.read(_LARGEST_REPORT_BYTES + 1)
            text = data.decode("utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"the report {self.path} cannot be read ({error}); save it as UTF-8 text"
            ) from error
        if not text or len(data) > _LARGEST_REPORT_BYTES:
            raise DataError(
                f"the report {self.path} is empty or longer than {_LARGEST_REPORT_BYTES} bytes; "
                "leave the cell blank or shorten the text"
            )
        return text


@register_modality
class Report(Modality):
    """Free-text reports."""

    name = "report"

    def content(self, cell: str, folder: Path) -> Content:
        """The text of the cell, or the file behind an ``@``."""
        return ReportFile(resolve(cell[1:], folder)) if cell.startswith("@") else InMemory(cell)
