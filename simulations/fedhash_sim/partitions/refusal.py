"""What is told of a partition that the data does not allow."""

from __future__ import annotations

from fedhash_sim.refusal import RefusedByDataError

__all__ = ["PartitionError"]


class PartitionError(RefusedByDataError):
    """The patients cannot be dealt as asked.

    Attributes:
        key: The argument of the partition that can mend it.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(("partition", key), message)
        self.key = key
