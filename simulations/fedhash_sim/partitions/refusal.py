"""What is told of a partition that the data does not allow."""

from __future__ import annotations

from fedhash.errors import DataError

__all__ = ["PartitionError"]


class PartitionError(DataError):
    """The patients cannot be dealt as asked.

    Attributes:
        key: The argument of the partition that can mend it.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key
