"""Who somebody is: one URI in the subject alternative name of a certificate.

``fedhash://CONSORTIUM/ROLE/NAME``, each part percent-encoded (RFC 3986); the authority's own has
the consortium alone. One name has one spelling: whoever compares URIs and whoever compares names
must agree.

    >>> member_uri("thorax", "site", "hospital a")
    'fedhash://thorax/site/hospital%20a'
"""

from __future__ import annotations

import re
from typing import Literal, get_args
from urllib.parse import quote, unquote

from cryptography import x509

from fedhash.errors import CertificateError

__all__ = ["ROLES", "SERVERS", "Role", "member_uri", "uri_parts"]

Role = Literal["site", "coordinator", "gateway", "superlink", "router"]

ROLES: tuple[Role, ...] = get_args(Role)
SERVERS = frozenset({"gateway", "superlink", "router"})
_SCHEME = "fedhash://"
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,200}")  # as fedhash.agreement.SiteName


def member_uri(*parts: str) -> str:
    """The URI of consortium, role and name, or of a consortium.

    Raises:
        CertificateError: A part is no name.
    """
    return _SCHEME + "/".join(map(_quoted, parts))


def uri_parts(certificate: x509.Certificate, count: int) -> list[str]:
    """The `count` decoded parts of the certificate's URI: consortium, role and name.

    Raises:
        CertificateError: There is no such URI, or another beside it.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
        raise CertificateError(f"the certificate names nobody: {error}") from error
    if len(uris) != 1 or not uris[0].startswith(_SCHEME):
        raise CertificateError(
            "the certificate names nobody of a consortium: expected exactly one URI, "
            f"fedhash://CONSORTIUM/ROLE/NAME, found {uris[:3]}"
        )
    encoded = uris[0].removeprefix(_SCHEME).split("/")
    parts = [unquote(part, errors="replace") for part in encoded]
    if len(parts) != count or not all(
        _NAME.fullmatch(part) and _quoted(part) == raw
        for part, raw in zip(parts, encoded, strict=True)
    ):
        raise CertificateError(
            f"the certificate has the URI {uris[0][:300]!r}, which is not in the form of "
            "fedhash://CONSORTIUM/ROLE/NAME"
        )
    return parts


def _quoted(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise CertificateError(
            f"{name[:80]!r} is no name; write 1 to 200 characters without control characters"
        )
    try:
        return quote(name, safe="")
    except UnicodeEncodeError as error:
        raise CertificateError(f"{name[:80]!r} is no name: it is no whole text") from error
