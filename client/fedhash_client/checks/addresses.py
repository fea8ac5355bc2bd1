"""Addresses of the coordinator's two doors, as host and port.

>>> split_address("[::1]:9443")
('::1', 9443)
"""

from __future__ import annotations

import re

__all__ = ["address_fault", "split_address"]

_FORMS = "expected HOST:PORT, such as coordinator.hospital.org:9443 or [2001:db8::1]:9443"
# names that RFC 2606 keeps for examples
_EXAMPLE = re.compile(r"(.*\.)?(example\.(org|com|net)|example|invalid)", re.IGNORECASE)


def split_address(address: str) -> tuple[str, int]:
    """Host, without brackets, and port."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def address_fault(address: str) -> str | None:
    """What is wrong with an address of a site's file and what to do, or None."""
    host, port = split_address(address)
    bracketed = address.startswith("[") and "]:" in address
    if not 1 <= port <= 65_535:
        return f"{address!r} has the port {port}, there are 1 to 65535; {_FORMS}"
    if bracketed != (":" in host) or "[" in host or "]" in host:
        return f"{address!r} is no address; {_FORMS}"
    if _EXAMPLE.fullmatch(host):
        return f"{host} is the example's name; write that of the coordinator's machine"
    return None
