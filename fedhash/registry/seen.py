"""The newest release statement that a site has accepted, so that no older one can be replayed.

1. A statement with a smaller number is refused; so is another statement with the same number.
2. The number is on the disk before the statement is acted upon.
3. **A site that loses this file takes the next validly signed statement, however old.** Its
   operator can name a number below which nothing is taken (`releases.smallest_number` in
   site.yaml), such as the one that the site's status or the coordinator's `release list` showed.

    >>> seen = NewestSeen(Path("state/releases/newest.json"))
    >>> seen.accept(statement)
    >>> seen.number
    7
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import Field, ValidationError

from fedhash.configuration import Settings
from fedhash.durability import replace_file
from fedhash.errors import ReleaseError, StorageError
from fedhash.registry.statement import ReleaseId, Statement
from fedhash.regular_file import read_regular_file

__all__ = ["NewestSeen"]

_LARGEST_BYTES = 1 << 12


class _Seen(Settings):
    number: int = Field(ge=1)
    digest: str = Field(pattern="^[0-9a-f]{64}$")
    release_id: ReleaseId


class NewestSeen:
    """What stands in the file; none before the first statement.

    Args:
        path: The file.
        smallest_number: Statements below it are refused, whatever the file says.

    Raises:
        ReleaseError: The file is damaged.
        StorageError: It cannot be read.
    """

    def __init__(self, path: Path, smallest_number: int = 1) -> None:
        self._path = path
        self._smallest_number = smallest_number
        self._seen: _Seen | None = None
        try:
            self._seen = _Seen.model_validate_json(read_regular_file(path, _LARGEST_BYTES))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StorageError(error, path) from error
        except ValidationError as error:
            raise ReleaseError(
                f"{path} is damaged, and it keeps old releases from being sent again; set "
                "releases.smallest_number in site.yaml to the newest number that you know of, then "
                "remove the file"
            ) from error

    @property
    def number(self) -> int:
        """Of the newest statement; 0 before the first."""
        return 0 if self._seen is None else self._seen.number

    @property
    def release_id(self) -> str | None:
        """That the newest statement names; None before the first."""
        return None if self._seen is None else self._seen.release_id

    def accept(self, statement: Statement) -> None:
        """Note a verified statement, or refuse it.

        Raises:
            ReleaseError: It is older than one that was accepted, or another with the same number.
            StorageError: It cannot be noted, so it must not be acted upon.
        """
        if statement.number < max(self.number, self._smallest_number):
            raise ReleaseError(
                f"statement {statement.number} names release {statement.release_id[:12]}, and this "
                f"site takes none below number {max(self.number, self._smallest_number)}: somebody "
                "sends an old one again, or the coordinator lost its newest; ask the coordinator"
            )
        digest = hashlib.sha256(statement.model_dump_json().encode()).hexdigest()
        if self._seen is not None and statement.number == self._seen.number:
            if digest != self._seen.digest:
                raise ReleaseError(
                    f"two different statements are signed with the number {statement.number}; the "
                    "coordinator's key is used in two places: ask the coordinator"
                )
            return
        seen = _Seen(number=statement.number, digest=digest, release_id=statement.release_id)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, seen.model_dump_json().encode())
        except OSError as error:
            raise StorageError(error, self._path) from error
        self._seen = seen
