"""Faults of a site, gathered: one never hides another.

1. An error keeps the site from working, or from what its file promises. A warning tells what works
   otherwise than somebody who reads the file may believe.
2. A check that stumbles over a typed error notes it at its place and the next check goes on.

    >>> found = Findings()
    >>> with found.gathered(path):
    ...     read_private_file(path)
    >>> found.findings[0].problem.message
    'others may use this private key (mode 0644, expected 0600); run chmod 600 on it, ...'
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fedhash.agreement import Agreement
from fedhash.configuration import problem_at
from fedhash.errors import ConfigurationError, FedhashError, Problem, StorageError
from fedhash_client.settings import SiteSettings

__all__ = ["CheckedSite", "Finding", "Findings", "Severity"]

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class CheckedSite:
    """What the checks look at.

    Attributes:
        file: The site's file.
        settings: What it holds.
        agreement: What it names; None where that cannot be read.
        running: Whether the site's daemon runs, so that its ports and locks are its own.
    """

    file: Path
    settings: SiteSettings
    agreement: Agreement | None
    running: bool


@dataclass(frozen=True)
class Finding:
    """One fault and how grave it is."""

    severity: Severity
    problem: Problem


@dataclass
class Findings:
    """All that was found, in the order of the checks."""

    findings: list[Finding] = field(default_factory=list)

    def add(self, file: Path, message: str, severity: Severity = "error") -> None:
        """Note a fault of a file that has no lines."""
        self.findings.append(Finding(severity, Problem(file, None, message)))

    def add_at(
        self, file: Path, key: tuple[str, ...], message: str, severity: Severity = "error"
    ) -> None:
        """Note a fault at the line of a key of a YAML file that was read."""
        self.findings.append(Finding(severity, problem_at(file, key, message)))

    @contextmanager
    def gathered(self, file: Path) -> Iterator[None]:
        """Note what a reader of `file` raises, and go on behind the block."""
        try:
            yield
        except ConfigurationError as error:
            self.findings += [Finding("error", problem) for problem in error.problems]
        except FedhashError as error:
            self.add(file, str(error))
        except OSError as error:
            self.add(file, str(StorageError(error, file)))
