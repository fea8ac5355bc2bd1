"""Whether a port is free, and whether a server of ours serves on one.

A connection alone proves nothing: the kernel accepts it for a process whose threads have died. So a
TLS server must finish a handshake, with a certificate of the consortium, and an HTTP one answer.

    >>> check_port_free("gateway", "0.0.0.0", 9443)
    >>> serves_tls("0.0.0.0", 9443, folder.ca)
    True
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
from contextlib import closing
from pathlib import Path

from fedhash.errors import ProtocolError

__all__ = ["check_port_free", "serves_health", "serves_tls"]

_TIMEOUT_S = 3.0


def check_port_free(name: str, listen: str, port: int) -> None:
    """Check that a server will be able to listen.

    Args:
        name: Of the section in coordinator.yaml that has the port.
        listen: IP address.
        port: Its port.

    Raises:
        ProtocolError: It will not.
    """
    with closing(socket.socket(_family(listen))) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that just ended is free
        try:
            probe.bind((listen, port))
        except OSError as error:
            raise ProtocolError(
                f"the {name} cannot listen on {listen} port {port} ({error.strerror}); end what "
                f"listens there ('ss -ltnp sport = :{port}' names it), or set another "
                f"{name}.port or {name}.listen in coordinator.yaml"
            ) from error


def serves_tls(listen: str, port: int, ca: Path) -> bool:
    """Whether a server with a certificate of `ca` finishes a TLS handshake there."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # it is asked over loopback, under no name of its own
    try:
        context.load_verify_locations(ca)
        with closing(socket.socket(_family(listen))) as connection:
            connection.settimeout(_TIMEOUT_S)
            connection.connect((_reached(listen), port))
            with context.wrap_socket(connection):
                return True
    except OSError:  # ssl.SSLError is one
        return False


def serves_health(port: int) -> bool:
    """Whether `/health` on loopback says that all is well."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)) as connection:
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False


def _reached(listen: str) -> str:
    """An address under which this machine reaches a server that listens so."""
    address = ipaddress.ip_address(listen)
    if not address.is_unspecified:
        return listen
    return "::1" if address.version == 6 else "127.0.0.1"


def _family(listen: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in listen else socket.AF_INET
