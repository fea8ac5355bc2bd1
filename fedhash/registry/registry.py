"""The coordinator's releases: a folder that only grows, and one signed file that says which counts.

    releases/
      RELEASE_ID/           a release (`fedhash.registry.release`); never changed
      statements.jsonl      every statement that was ever signed, chained by hashes
      current.json          the newest one: what sites are given

1. A release is whole before a statement names it. A statement is in `statements.jsonl`, on the
   disk, before it is `current.json`. So whenever the process dies, what `current.json` names is
   whole, and no number is given twice: the next statement's is above all that either file holds.
2. Two commands at a time: the second is refused (the lock of the audit log).
3. If both files are lost, nothing here knows which numbers the sites have seen. Whoever restores
   the folder names the largest (`after`).

    >>> registry = Registry(Path("releases"), agreement, SiteIdentity.load(Path("release.key")))
    >>> registry.publish(release_id).number
    7
    >>> registry.roll_back(older_id).number
    8
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from fedhash.agreement import Agreement
from fedhash.audit_log import AuditLog, read_audit_log
from fedhash.durability import replace_file
from fedhash.errors import ReleaseError, StorageError
from fedhash.registry.release import Release, load_release
from fedhash.registry.statement import (
    LARGEST_STATEMENT_BYTES,
    Statement,
    read_statement,
    signed,
)
from fedhash.regular_file import read_regular_file
from fedhash.secagg.identity import SiteIdentity

__all__ = ["CURRENT_FILE", "Registry", "read_current", "release_ids"]

CURRENT_FILE = "current.json"
_STATEMENTS_FILE = "statements.jsonl"


def release_ids(folder: Path) -> list[str]:
    """Ids of the releases in a folder, sorted; they are not verified.

    Raises:
        StorageError: The folder cannot be read.
    """
    try:
        names = [path.name for path in folder.iterdir() if path.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(error, folder) from error
    return sorted(name for name in names if re.fullmatch("[0-9a-f]{64}", name))


def read_current(folder: Path) -> bytes | None:
    """The signed statement of `current.json` as it stands there, or None before the first.

    Raises:
        StorageError: It cannot be read.
    """
    try:
        return read_regular_file(folder / CURRENT_FILE, LARGEST_STATEMENT_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(error, folder / CURRENT_FILE) from error


class Registry:
    """The folder, open for statements of one consortium.

    Args:
        folder: `releases`; made if need be.
        agreement: Its name is the consortium's, its `release_key` that of the key.
        key: Signs.

    Raises:
        ReleaseError: The key is not the agreement's `release_key`.
    """

    def __init__(self, folder: Path, agreement: Agreement, key: SiteIdentity) -> None:
        if key.public_hex != agreement.release_key:
            raise ReleaseError(
                f"the release key here is {key.public_hex}, the agreement's release_key is "
                f"{agreement.release_key}: sites would refuse what it signs; use the key that the "
                "agreement names, or have all sites sign a new version of the agreement"
            )
        self.folder = folder
        self._agreement = agreement
        self._key = key

    def current(self) -> Statement | None:
        """The newest statement, or None before the first.

        Raises:
            ReleaseError: `current.json` is damaged or was not signed with the key.
        """
        data = read_current(self.folder)
        if data is None:
            return None
        return read_statement(data, self._key.public_hex, self._agreement.name)

    def statements(self) -> tuple[Statement, ...]:
        """All that were ever signed, oldest first.

        Raises:
            AuditError: The list was altered.
            ReleaseError: An entry is no statement.
        """
        path = self.folder / _STATEMENTS_FILE
        if not path.exists():
            return ()
        try:
            return tuple(
                Statement.model_validate_json(str(entry.content["statement"]))
                for entry in read_audit_log(path)
            )
        except (ValidationError, KeyError) as error:
            raise ReleaseError(
                f"{path} holds something else than statements ({error}); restore it from a copy"
            ) from error

    def publish(self, release_id: str, after: int = 0) -> Statement:
        """Make a release of the folder current.

        Args:
            release_id: Its id.
            after: A number that sites have seen, where the folder was restored from an older copy.

        Raises:
            ReleaseError: It is not in the folder, damaged, of another agreement, or current.
            AuditError: The list of statements was altered, or another process writes it.
            StorageError: The operating system refuses; what was current stays so.
        """
        return self._state("release", release_id, after)

    def roll_back(self, release_id: str, after: int = 0) -> Statement:
        """Make an older release current again, by a new statement; see `publish`."""
        if all(each.release_id != release_id for each in self.statements()):
            raise ReleaseError(
                f"release {release_id[:12]} was never current, so there is no way back to it; "
                "'fedhash-coordinator release list' shows those that were"
            )
        return self._state("rollback", release_id, after)

    def _state(
        self, kind: Literal["release", "rollback"], release_id: str, after: int
    ) -> Statement:
        release = self._verified(release_id)
        with AuditLog(self.folder / _STATEMENTS_FILE) as log:
            current = self.current()
            if current is not None and current.release_id == release.release_id:
                raise ReleaseError(
                    f"release {release_id[:12]} is current already, by statement {current.number}"
                )
            numbers = [after, *(each.number for each in self.statements())]
            numbers += [current.number] if current is not None else []
            statement = Statement(
                consortium=self._agreement.name,
                number=max(numbers) + 1,
                kind=kind,
                release_id=release.release_id,
                issued=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            )
            log.append({"statement": statement.model_dump_json()})
            try:
                replace_file(self.folder / CURRENT_FILE, signed(statement, self._key))
            except OSError as error:
                raise StorageError(error, self.folder / CURRENT_FILE) from error
        return statement

    def _verified(self, release_id: str) -> Release:
        if release_id not in release_ids(self.folder):
            raise ReleaseError(
                f"{self.folder} holds no release {release_id!r}; give the whole id, as "
                "'fedhash-coordinator release list' prints it"
            )
        release = load_release(self.folder / release_id)
        if release.release_id != release_id:
            raise ReleaseError(
                f"{self.folder / release_id} holds release {release.release_id}: somebody moved "
                "it; give the folder the name of its release"
            )
        if release.agreement.codes_digest() != self._agreement.codes_digest():
            raise ReleaseError(
                f"release {release_id[:12]} was trained under another agreement: name, vocabulary, "
                "code length or modalities are not this consortium's, and every site would refuse "
                "it; train anew under this one"
            )
        return release
