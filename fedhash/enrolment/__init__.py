"""Who is who in a consortium: its certificate authority, certificates, and requests for them."""

from __future__ import annotations

from fedhash.enrolment.certificates import Authority, Peer, Role, check_certificate, peer_of

__all__ = ["Authority", "Peer", "Role", "check_certificate", "peer_of"]
