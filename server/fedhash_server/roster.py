"""The enrolled sites, as the coordinator's folder has them: `sites/NAME/`.

>>> {name: site.fingerprint for name, site in read_roster(folder).items()}
{'hospital-a': '0f3c...', 'hospital-b': '77d1...'}
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fedhash.enrolment import peer_of
from fedhash.enrolment.certificates import expiry, serial_number
from fedhash.errors import CertificateError, StorageError
from fedhash.regular_file import read_regular_file
from fedhash_server.coordinator_folder import CoordinatorFolder

__all__ = ["EnrolledSite", "read_roster"]

_LARGEST_BYTES = 1 << 16


@dataclass(frozen=True)
class EnrolledSite:
    """One enrolled site.

    Attributes:
        name: Its name.
        fingerprint: Of its certificate, 64 hex digits.
        serial: Of its certificate, as nginx writes it.
        expires: When the certificate stops being valid.
        supernode_key: Of its Flower SuperNode, a line of OpenSSH.
    """

    name: str
    fingerprint: str
    serial: str
    expires: datetime
    supernode_key: str


def read_roster(folder: CoordinatorFolder) -> dict[str, EnrolledSite]:
    """Name to site, sorted.

    Raises:
        CertificateError: A site's folder holds a certificate of somebody else.
        StorageError: A site's folder cannot be read.
    """
    roster: dict[str, EnrolledSite] = {}
    try:
        paths = sorted(folder.sites.glob("*/certificate.pem"))
        # any certificate of ours names the consortium; the gateway's is always there
        gateway = read_regular_file(folder.certificate("gateway"), _LARGEST_BYTES)
        consortium = peer_of(gateway).consortium
        for path in paths:
            site = _enrolled(path, consortium)
            roster[site.name] = site
    except OSError as error:
        raise StorageError(error, folder.sites) from error
    return roster


def _enrolled(path: Path, consortium: str) -> EnrolledSite:
    certificate = read_regular_file(path, _LARGEST_BYTES)
    peer, name = peer_of(certificate), path.parent.name
    if (peer.consortium, peer.role, peer.name) != (consortium, "site", name):
        raise CertificateError(
            f"{path} names the {peer.role} {peer.name!r} of {peer.consortium!r}, expected the site "
            f"{name!r} of {consortium!r}; "
            # not by 'strike', which reads this as well; and a running coordinator would have
            # Flower refuse the key of a site that is gone
            "restore it from a copy, or end 'fedhash-coordinator run', move "
            f"{path.parent} away, and enrol the request.json in it again"
        )
    line = read_regular_file(path.with_name("supernode.pub"), _LARGEST_BYTES)
    key = line.decode("ascii", errors="replace").strip()
    return EnrolledSite(
        name, peer.fingerprint, serial_number(certificate), expiry(certificate), key
    )
