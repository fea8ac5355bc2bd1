"""Who is who in a consortium: its certificate authority, certificates, and requests for them."""

from __future__ import annotations

from fedhash.enrolment.authority import Authority
from fedhash.enrolment.certificates import Peer, check_certificate, peer_of
from fedhash.enrolment.names import Role

__all__ = ["Authority", "Peer", "Role", "check_certificate", "peer_of"]
