"""A consortium's authority and certificates of every kind, good and bad, as PEM files.

>>> consortium = Consortium(tmp_path)
>>> consortium.site("hospital-a").certificate.read_bytes()
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fedhash.enrolment import Authority, Role

NAME = "thorax"


@dataclass(frozen=True)
class Credentials:
    """What one peer shows: paths of PEM files."""

    key: Path
    certificate: Path
    ca: Path


class Consortium:
    """An authority under `folder`; two objects are foreign to each other."""

    def __init__(self, folder: Path, name: str = NAME) -> None:
        self.folder = folder
        self.authority = Authority.generate(name)
        self.ca = folder / "ca.pem"
        self.ca.parent.mkdir(parents=True, exist_ok=True)
        self.ca.write_bytes(self.authority.certificate_pem)

    def issue(self, role: Role, name: str, *, expired: bool = False) -> Credentials:
        """A certificate; servers are for 127.0.0.1 and localhost."""
        hosts = () if role in {"site", "coordinator"} else ("127.0.0.1", "localhost")
        start = datetime.now(UTC) - timedelta(days=3 if expired else 0)
        key_pem, certificate_pem = self.authority.issue(role, name, hosts=hosts, days=1, now=start)
        stem = f"{role}-{name}{'-expired' if expired else ''}"
        key, certificate = self.folder / f"{stem}.key", self.folder / f"{stem}.pem"
        key.touch(mode=0o600)
        key.write_bytes(key_pem)
        certificate.write_bytes(certificate_pem)
        return Credentials(key, certificate, self.ca)

    def site(self, name: str, *, expired: bool = False) -> Credentials:
        return self.issue("site", name, expired=expired)

    def server(self, role: Role) -> Credentials:
        return self.issue(role, role)

    def enrol(self, name: str, coordinator_folder: Path) -> Credentials:
        """A site whose certificate stands in the coordinator's roster."""
        credentials = self.site(name)
        roster = coordinator_folder / "sites" / name
        roster.mkdir(parents=True, exist_ok=True)
        (roster / "certificate.pem").write_bytes(credentials.certificate.read_bytes())
        return credentials
