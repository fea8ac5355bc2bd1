"""Who is at the other end of a connection to the router: certificate, role, and today's roster.

1. TLS has verified chain, dates and use of the certificate. Here its name, role and consortium are
   read, and a site's fingerprint must be the enrolled one: a certificate that was replaced or
   struck off is refused, whatever its dates.
2. Roster and agreement are read anew when a file of theirs has changed, at most once a second.
   While they cannot be read, the last ones hold and the log says so.
3. The coordinator's own certificates are not listed anywhere: only who has the authority's key can
   make one.

    >>> members = Members(CoordinatorFolder(Path("thorax")))
    >>> members.peer(context.auth_context(), {"site"}).name
    'hospital-a'
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from fedhash.agreement import Agreement
from fedhash.enrolment import Peer, Role, peer_of
from fedhash.enrolment.certificates import expiry
from fedhash.errors import CertificateError, FedhashError
from fedhash_server.coordinator_folder import CoordinatorFolder
from fedhash_server.roster import EnrolledSite, read_roster

__all__ = ["Members"]

_CHECKED_EVERY_S = 1.0

_log = logging.getLogger(__name__)


class Members:
    """The members of the consortium of a coordinator's folder.

    Attributes:
        agreement: As last read.

    Raises:
        ConfigurationError: The agreement is wrong.
        CertificateError: The roster holds a wrong certificate.
        StorageError: A file cannot be read.
    """

    def __init__(
        self, folder: CoordinatorFolder, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._checked = clock()
        self._seen = self._states()
        self._consortium = folder.settings().consortium
        self.agreement: Agreement = folder.agreement()
        self._roster: dict[str, EnrolledSite] = read_roster(folder)

    def refresh(self) -> None:
        """Read what has changed on the disk."""
        now = self._clock()
        if now - self._checked < _CHECKED_EVERY_S:
            return
        self._checked = now
        try:
            states = self._states()
            if states != self._seen:
                self.agreement, self._roster = self._folder.agreement(), read_roster(self._folder)
                self._seen = states
                _log.info("roster and agreement were read anew: %d sites", len(self._roster))
        except (FedhashError, OSError) as error:
            _log.warning("the last roster and agreement hold on: %s", error)

    def peer(self, auth_context: Mapping[str, Iterable[bytes]], roles: frozenset[Role]) -> Peer:
        """Who a connection belongs to.

        Args:
            auth_context: Of gRPC.
            roles: Who may come.

        Raises:
            CertificateError: Nobody who may.
        """
        self.refresh()
        certificates = list(auth_context.get("x509_pem_cert", ()))
        if len(certificates) != 1:
            raise CertificateError("the connection shows no certificate")
        return self.check(certificates[0], roles)

    def check(self, certificate_pem: bytes, roles: frozenset[Role]) -> Peer:
        """Whom a certificate names that TLS accepted some time ago, if it is still good.

        Raises:
            CertificateError: It is not, or its role is not among `roles`.
        """
        peer = peer_of(certificate_pem)
        if peer.consortium != self._consortium or peer.role not in roles:
            raise CertificateError(
                f"the certificate is of the {peer.role} {peer.name!r} of {peer.consortium!r}, "
                f"expected a {' or '.join(sorted(roles))} of {self._consortium!r}"
            )
        if expiry(certificate_pem) < datetime.now(UTC):
            raise CertificateError(f"the certificate of {peer.name!r} has expired; enrol anew")
        if peer.role == "site":
            enrolled = self._roster.get(peer.name)
            if enrolled is None or enrolled.fingerprint != peer.fingerprint:
                raise CertificateError(
                    f"the certificate of {peer.name!r} is not the enrolled one; it was replaced or "
                    "struck off"
                )
        return peer

    def _states(self) -> list[tuple[Path, int, int]]:
        """What changes when a file of the roster or the agreement does."""
        paths = [self._folder.agreement_file, *sorted(self._folder.sites.glob("*/certificate.pem"))]
        return [(path, (state := path.stat()).st_mtime_ns, state.st_ino) for path in paths]
