"""Whether the coordinator can be reached, and whether both clocks tell the same time.

1. Both doors are opened as the daemon opens them: TLS 1.3 under the consortium's authority alone,
   the site's own certificate shown, through the proxy that `HTTPS_PROXY` names.
2. The gateway is asked for a page that it does not have. Its answer tells whether it knows this
   site's certificate, and its header ``Date`` (RFC 9110, section 6.6.1) what time it is there. Only
   a verified gateway is believed. A second is the header's grain and the way back takes a while:
   what remains is told where it is more than sites tolerate in a query.
3. The router is asked which release is current: it answers enrolled sites alone.
4. Nothing of the site is sent but its certificate.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.request import getproxies, proxy_bypass

import grpc

from fedhash.errors import FedhashError
from fedhash.registry.wire import CURRENT_METHOD, SERVICE
from fedhash.registry.wire.releases_pb2 import CurrentRequest
from fedhash.search.asking import CLOCK_TOLERANCE_MS
from fedhash_client.checks.addresses import address_fault, split_address
from fedhash_client.checks.findings import CheckedSite, Findings
from fedhash_client.network_settings import NetworkSettings
from fedhash_client.router_channel import explained, open_channel
from fedhash_client.supernode import tls_context

__all__ = ["check_connections"]

_TIMEOUT_S = 10.0
_DATE_GRAIN_S = 1.0


def check_connections(site: CheckedSite, found: Findings) -> None:
    """Connect to the gateway and to the router."""
    network = site.settings.network
    if network is None:
        found.add(site.file, "there is no section network, so there is nothing to connect to")
        return
    try:
        context = tls_context(network.certificate, network.key, network.ca)
    except FedhashError:
        return  # what is wrong with these files has been told
    if address_fault(network.superlink) is None:
        _check_gateway(site.file, network, context, found)
    if address_fault(network.router) is None:
        _check_router(site.file, network, found)


def _check_gateway(
    file: Path, network: NetworkSettings, context: ssl.SSLContext, found: Findings
) -> None:
    connection = _connection(network.superlink, context)
    place = ("network", "superlink")
    try:
        started = time.time()
        connection.request("GET", "/", headers={"Connection": "close"})
        with connection.getresponse() as response:
            ended, status, date = time.time(), response.status, response.getheader("Date")
    except (OSError, http.client.HTTPException) as error:
        found.add_at(file, place, _failure("gateway", network.superlink, error))
        return
    finally:
        connection.close()
    if status == http.HTTPStatus.FORBIDDEN:
        message = "the gateway does not know this site's certificate; ask the coordinator to enrol"
        found.add_at(file, place, f"{message} this site, and use the certificate that comes back")
    if date is not None:
        _check_clock(file, date, started, ended, found)


def _check_clock(file: Path, date: str, started: float, ended: float, found: Findings) -> None:
    try:
        there = parsedate_to_datetime(date).timestamp()
    except ValueError:
        return  # a header that is no date says nothing about this clock
    # the gateway wrote its time, cut to seconds, between the two readings of ours
    apart_s = max(started - (there + _DATE_GRAIN_S), there - ended, 0.0)
    if apart_s > CLOCK_TOLERANCE_MS / 1000:
        behind = "behind" if there > ended else "ahead of"
        found.add_at(
            file,
            ("network", "superlink"),
            f"this machine's clock is {apart_s:.0f} s {behind} the coordinator's, at most "
            f"{CLOCK_TOLERANCE_MS / 1000:g} s are tolerated in queries; run a time service (such "
            "as systemd-timesyncd or chrony) here, or have the coordinator do so",
        )


def _check_router(file: Path, network: NetworkSettings, found: Findings) -> None:
    place = ("network", "router")
    try:
        # gRPC tells little of a way that is closed
        with socket.create_connection(_first_hop(network.router), _TIMEOUT_S):
            pass
        _ask_router(network)
    except OSError as error:
        found.add_at(file, place, _failure("router", network.router, error))
    except FedhashError as error:
        found.add_at(file, place, str(error))


def _ask_router(network: NetworkSettings) -> None:
    """Ask which release is current.

    Raises:
        ProtocolError: The router does not answer this site.
    """
    with open_channel(network) as channel:
        ask: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            f"/{SERVICE}/{CURRENT_METHOD}"
        )
        try:
            ask(CurrentRequest().SerializeToString(), timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            raise explained(error, network.router) from error


def _connection(address: str, context: ssl.SSLContext) -> http.client.HTTPSConnection:
    host, port = split_address(address)
    via, via_port = _first_hop(address)
    connection = http.client.HTTPSConnection(via, via_port, timeout=_TIMEOUT_S, context=context)
    if (via, via_port) != (host, port):
        connection.set_tunnel(host, port)
    return connection


def _first_hop(address: str) -> tuple[str, int]:
    """The proxy if one is to be used, else the address itself."""
    host, port = split_address(address)
    proxy = getproxies().get("https")
    if proxy is None or proxy_bypass(host):
        return host, port
    return split_address(proxy.rpartition("//")[2].rpartition("@")[2].rstrip("/"))


def _failure(whose: str, address: str, error: Exception) -> str:
    host, port = _first_hop(address)
    via = "" if (host, port) == split_address(address) else f" by the proxy {host}:{port}"
    if isinstance(error, ssl.SSLCertVerificationError):
        remedy = (
            f"{address} did not show a certificate of the consortium for this name "
            f"({error.verify_message}); check address and ca.pem, and that no proxy opens TLS"
        )
    elif isinstance(error, ssl.SSLError | ConnectionResetError | http.client.HTTPException):
        remedy = (
            f"{address} answers and ends the connection ({error}); it may not take this site's "
            f"certificate, or be no {whose}: check the port, and ask the coordinator"
        )
    elif isinstance(error, socket.gaierror):
        remedy = (
            f"the name in {address} is not known here{via} ({error.strerror}); check it and DNS"
        )
    else:
        remedy = (
            f"{address} cannot be reached{via} ({error}); check that the {whose} runs, and that "
            "the firewall lets this machine out to that port"
        )
    return remedy
