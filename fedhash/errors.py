"""The one tree of errors that fedhash raises for its callers.

A message says what was found, what was expected and what to do.

    FedhashError
    ├── ConfigurationError     a YAML file; carries every problem of the file at once
    ├── DataError              a manifest, an image, an array, a report
    │   └── ManifestError      the manifest as a whole cannot be read
    ├── ModelError             anchors, towers, layouts
    │   └── DivergedError      a training that left the finite numbers
    ├── ProtocolError          a message or a reply of a peer
    │   ├── MessageError       bytes that are not a message of this protocol
    │   ├── RefusedError       the site's own rules forbid the request
    │   │   └── BudgetError    it would exceed the cap on what patients' data may leak
    │   ├── BundleError        a Flower app bundle that is no configuration of fedhash
    │   ├── CohortError        too few sites answered
    │   └── AggregationError   a masked sum that cannot be opened
    ├── CheckpointError        a stored state that cannot be resumed, or not be stored
    ├── ReleaseError           a released model that does not verify
    ├── ArchiveError           the site's binary index
    ├── PrivacyError           parameters of privacy that guarantee nothing
    ├── LedgerError            a privacy ledger that was altered, or cannot be used
    ├── AuditError             an audit log that was altered, or cannot be written
    ├── CertificateError       a certificate or a request that names nobody, or not whom it should
    ├── QueryError             a search request that cannot be answered
    └── StorageError           a file that the operating system refuses
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedhash.printable import printable

__all__ = [
    "LEFT_FINITE_NUMBERS",
    "AggregationError",
    "ArchiveError",
    "AuditError",
    "BudgetError",
    "BundleError",
    "CertificateError",
    "CheckpointError",
    "CohortError",
    "ConfigurationError",
    "DataError",
    "DivergedError",
    "FedhashError",
    "LedgerError",
    "ManifestError",
    "MessageError",
    "ModelError",
    "PrivacyError",
    "Problem",
    "ProtocolError",
    "QueryError",
    "RefusedError",
    "ReleaseError",
    "StorageError",
]


class FedhashError(Exception):
    """Base of all errors that a caller of fedhash may want to catch.

    Messages quote files and peers and end on terminals: see :func:`fedhash.printable.printable`.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong at one place of a user's file.

    Attributes:
        file: The file as the user named it.
        line: Line number from 1, or None where the problem has no line.
        message: What was found, what was expected and what to do.
    """

    file: Path
    line: int | None
    message: str

    def __str__(self) -> str:
        place = str(self.file) if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.message}"


class ConfigurationError(FedhashError):
    """A configuration file is wrong; `problems` holds everything found, not only the first."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in problems))


class DataError(FedhashError):
    """A study's content cannot be used."""


class ManifestError(DataError):
    """A manifest as a whole cannot be read (single bad rows are reported, not raised)."""


class ModelError(FedhashError):
    """A model, its anchors or its layout break a rule."""


class DivergedError(ModelError):
    """A training left the finite numbers; a smaller learning rate or a bound on gradients helps."""


LEFT_FINITE_NUMBERS = "left the finite numbers"
"""Stands in what a round tells of such a training, where errors are text."""


class ProtocolError(FedhashError):
    """A peer broke the protocol, or a protocol step cannot go on."""


class MessageError(ProtocolError):
    """Bytes or fields that are not a valid message."""


class RefusedError(ProtocolError):
    """The site's own rules forbid what was asked.

    Attributes:
        reason: A short machine-readable name of the rule, such as ``bad_cohort``.
    """

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class BudgetError(RefusedError):
    """A private step would exceed a cap on epsilon; it was refused before any work."""

    def __init__(self, message: str) -> None:
        super().__init__("epsilon_cap", message)


class BundleError(ProtocolError):
    """A Flower app bundle holds anything else than configuration of fedhash."""


class CohortError(ProtocolError):
    """Fewer sites answered than the agreement's smallest cohort."""


class AggregationError(ProtocolError):
    """A masked sum cannot be opened, so the round has no result and nothing was revealed."""


class CheckpointError(FedhashError):
    """A checkpoint cannot be read or written, or belongs to another run."""


class ReleaseError(FedhashError):
    """A released model is incomplete, altered or of another format."""


class ArchiveError(FedhashError):
    """The site's index cannot be opened or does not match the release."""


class PrivacyError(FedhashError):
    """Parameters of privacy that are out of range or cannot be met."""


class LedgerError(FedhashError):
    """A privacy ledger was altered, shortened or damaged, or cannot be used."""


class AuditError(FedhashError):
    """An audit log was altered, cut short or damaged, or cannot be written."""


class CertificateError(FedhashError):
    """A certificate, or the request for one, does not prove what it should."""


class QueryError(FedhashError):
    """A search request is malformed or cannot be answered."""


class StorageError(FedhashError):
    """The operating system refuses a file or a folder: its rights, a full disk.

    Args:
        error: What the operating system said.
        path: What was written or read, for errors that name no file (a full disk does not).
    """

    def __init__(self, error: OSError, path: Path | None = None) -> None:
        super().__init__(
            f"{error.filename or path or 'a file'} cannot be used ({error.strerror or error}); "
            "check rights and disk space"
        )
