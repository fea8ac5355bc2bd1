"""Asking all sites of the consortium.

    from fedhash_client.federated_search import federated_search

    settings = read_settings(Path("site.yaml"), SiteSettings)
    merged = federated_search(settings, query, purpose="care")
    [hit.handle for hit in merged.hits], [site.site for site in merged.missing]

The query is signed with the site's identity and travels over its mutual TLS connection. Where a
handle leads only the site that gave it can say.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import grpc

from fedhash.agreement import Agreement
from fedhash.configuration import problem_at, read_settings
from fedhash.errors import ConfigurationError
from fedhash.search import Query
from fedhash.search.answers import Merged
from fedhash.search.asking import sign_query
from fedhash.search.replies import read_merged
from fedhash.search.wire.methods import ASK, SERVICE
from fedhash.search.wire.queries import SignedQuery, encode_signed
from fedhash.secagg.identity import SiteIdentity
from fedhash_client.network_settings import NetworkSettings
from fedhash_client.router_channel import explained, open_channel
from fedhash_client.settings import SiteSettings

__all__ = ["RouterClient", "federated_search"]

_MARGIN_S = 5.0  # the router replies at the query's deadline; the reply travels


class RouterClient:
    """An open connection for many queries, from any thread.

    Args:
        site: The asking site's name.
        agreement: What it signed.
        network: Where the router is and who the site is.

    Raises:
        ConfigurationError: Others may use a key.
        StorageError: A file cannot be read.
    """

    def __init__(self, site: str, agreement: Agreement, network: NetworkSettings) -> None:
        self._site = site
        self._agreement = agreement.digest()
        self._sites = agreement.sites
        self._address = network.router
        self._identity = SiteIdentity.load(network.identity)
        self._channel = open_channel(network)
        self._ask: Callable[..., bytes] = self._channel.unary_unary(f"/{SERVICE}/{ASK}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._channel.close()

    def signed(self, query: Query, *, purpose: str, timeout_s: float) -> SignedQuery:
        """The query as it would be sent now.

        Raises:
            MessageError: A field is of no valid form.
        """
        return sign_query(
            query,
            self._identity,
            requester=self._site,
            purpose=purpose,
            agreement=self._agreement,
            now_ms=time.time_ns() // 1_000_000,
            life_ms=max(1, round(1000 * timeout_s)),
        )

    def search(self, query: Query, *, purpose: str, timeout_s: float = 10.0) -> Merged:
        """Ask, and wait for the sites until `timeout_s`, at most a minute.

        Raises:
            RefusedError: The router forbids the query; what sites refuse stands in the result.
            ProtocolError: The router cannot be reached, or answers of other sites.
            MessageError: A field of the query or the reply is of no valid form.
        """
        signed = self.signed(query, purpose=purpose, timeout_s=timeout_s)
        try:
            data = self._ask(encode_signed(signed), timeout=timeout_s + _MARGIN_S)
        except grpc.RpcError as error:
            raise explained(error, self._address) from error
        return read_merged(query, signed, self._sites, data)


def federated_search(
    settings: SiteSettings,
    query: Query,
    *,
    purpose: str,
    timeout_s: float = 10.0,
    site_file: Path = Path("site.yaml"),
) -> Merged:
    """One query of a site to all others, and to itself.

    Args:
        settings: The asking site.
        query: From `fedhash.search.make_query`.
        purpose: What the answer is for; a name of the agreement.
        timeout_s: How long sites may take.
        site_file: For the message where `settings` has no network.

    Raises:
        ConfigurationError: The site's file has no section `network`, or a key is open to others.
        StorageError: A file cannot be read.
        RefusedError: The router forbids the query; what sites refuse stands in the result.
        ProtocolError: The router cannot be reached, or answers of other sites.
        MessageError: A field of the query or the reply is of no valid form.
    """
    if settings.network is None:
        message = "there is no section network, so no other site can be asked; add one"
        raise ConfigurationError([problem_at(site_file, (), message)])
    agreement = read_settings(settings.agreement, Agreement)
    with RouterClient(settings.name, agreement, settings.network) as router:
        return router.search(query, purpose=purpose, timeout_s=timeout_s)
