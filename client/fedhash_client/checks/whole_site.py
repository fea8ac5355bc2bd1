"""All checks of a site in one report.

>>> check_site(Path("site.yaml"), connect=True).sound
True
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedhash.agreement import Agreement
from fedhash.configuration import read_settings
from fedhash_client.checks.agreement_terms import check_terms
from fedhash_client.checks.credentials import TAKE_WELCOME, check_credentials
from fedhash_client.checks.data import DataCounts, check_data
from fedhash_client.checks.findings import CheckedSite, Finding, Findings
from fedhash_client.checks.machine import check_machine
from fedhash_client.checks.state import check_state
from fedhash_client.commands.site_files import daemon_runs
from fedhash_client.settings import SiteSettings

__all__ = ["SiteReport", "check_site"]


@dataclass(frozen=True)
class SiteReport:
    """What was found.

    Attributes:
        site: What was looked at; None where the site's file cannot be read.
        counts: Of the data.
        findings: Every fault, in the order of the checks.
    """

    site: CheckedSite | None
    counts: DataCounts
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Whether there is no error; there may be warnings."""
        return all(each.severity != "error" for each in self.findings)


def check_site(file: Path, *, connect: bool = False) -> SiteReport:
    """Run every check that can be run.

    Without a readable agreement, the checks that need it are left out; without a readable site's
    file, all are.

    Args:
        file: The site's file.
        connect: Whether to try the connections too; nothing else leaves this machine.
    """
    found = Findings()
    with found.gathered(file):
        settings = read_settings(file, SiteSettings)
        agreement: Agreement | None = None
        if not settings.agreement.exists():
            found.add(settings.agreement, f"there is no agreement yet; {TAKE_WELCOME}")
        else:
            with found.gathered(settings.agreement):
                agreement = read_settings(settings.agreement, Agreement)
        running = False
        with found.gathered(settings.state or file):
            running = daemon_runs(settings)
        site = CheckedSite(file, settings, agreement, running)
        counts = DataCounts()
        with found.gathered(file):
            check_credentials(site, found)
        with found.gathered(file):
            check_terms(site, found)
        with found.gathered(file):
            check_state(site, found)
        with found.gathered(file):
            check_machine(site, found)
        with found.gathered(file):
            counts = check_data(site, found)
        if connect:
            from fedhash_client.checks.connection import check_connections  # gRPC

            with found.gathered(file):
                check_connections(site, found)
        # two checks may look at one file; what both say is said once
        return SiteReport(site, counts, tuple(dict.fromkeys(found.findings)))
    return SiteReport(None, DataCounts(), tuple(found.findings))
