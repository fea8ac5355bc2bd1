"""What a study file asks for and its data does not allow."""

from __future__ import annotations

from fedhash.configuration import KeyPath
from fedhash.errors import DataError

__all__ = ["RefusedByDataError"]


class RefusedByDataError(DataError):
    """Known only when the studies are: told with the line that can mend it.

    Attributes:
        place: Of that line, as a key path of the study file.
    """

    def __init__(self, place: KeyPath, message: str) -> None:
        super().__init__(message)
        self.place = place
