"""The router's process: searches and releases for the sites, by mutual TLS.

    python -m fedhash_server.router THORAX        # the coordinator's folder

1. The port shows nothing to callers without a certificate of the consortium's authority: the TLS
   handshake ends before any request is read. Roles and roster are checked for each call
   (`fedhash_server.members`).
2. It keeps nothing on the disk. After a kill sites attach again by themselves and askers ask again;
   queries that were under way are lost to their askers, and nothing else is.
3. So many connections are open at a time, and those beyond are closed before their handshake. One
   site can take all of them: it is known by its certificate, and to be struck off.
4. Releases are served on the same port, by a few threads.
5. It ends at SIGTERM or SIGINT, after a second for the calls under way.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import grpc
from grpc import aio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from fedhash.errors import FedhashError, StorageError
from fedhash.private_file import read_private_file
from fedhash.search.wire.methods import SERVER_OPTIONS
from fedhash_process.health import HealthPage
from fedhash_server.coordinator_folder import CoordinatorFolder
from fedhash_server.coordinator_settings import RouterSettings
from fedhash_server.members import Members
from fedhash_server.query_service import QueryService
from fedhash_server.release_service import release_handler

__all__ = ["RouterServer", "main"]

_T = TypeVar("_T")
_GRACE_S = 1.0
_LOOK_S = 5.0
_THREADS = 8
_OPTIONS = (
    *SERVER_OPTIONS,
    ("grpc.so_reuseport", 0),  # a second router on the port must fail
    ("grpc.server_handshake_timeout_ms", 10_000),
    # of strangers too, as long as their handshake takes; 1024 open files are usual for a process
    ("grpc.max_allowed_incoming_connections", 512),
    ("grpc.max_connection_idle_ms", 300_000),  # without a call; an attached site has one
    ("grpc.max_concurrent_streams", 128),  # of one connection
    ("grpc.max_metadata_size", 8192),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 4),
)

_log = logging.getLogger(__name__)


class RouterServer:
    """The router of a coordinator's folder, in the running event loop.

    Attributes:
        port: That is listened on, once it is.
        health: The pages on loopback.
        members: Who may come.
        queries: The query service.

    Args:
        folder: The coordinator's.
        settings: Where to listen; a port 0 takes any that is free.

    Raises:
        ConfigurationError: A file is wrong.
        CertificateError: A certificate is.
        StorageError: A file cannot be read.
    """

    def __init__(
        self,
        folder: CoordinatorFolder,
        settings: RouterSettings,
    ) -> None:
        self.members = Members(folder)
        self.queries = QueryService(self.members, settings.limits)
        self._settings = settings
        releases = release_handler(
            folder.releases,
            lambda connection: self.members.peer(connection, frozenset({"site"})).name,
        )
        self._handlers = [self.queries.handler(), releases]
        registry = CollectorRegistry()
        registry.register(_Metrics(self.queries))
        self.health = HealthPage(
            settings.health_port,
            "router.health_port",
            lambda: self._in_loop(self._health),
            lambda: self._in_loop(lambda: generate_latest(registry)),
        )
        self.port = settings.port
        self._credentials = grpc.ssl_server_credentials(
            [(read_private_file(folder.key("router")), folder.certificate("router").read_bytes())],
            root_certificates=folder.ca.read_bytes(),
            require_client_auth=True,
        )
        self._server: aio.Server | None = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            StorageError: A port is taken.
        """
        self._loop = asyncio.get_running_loop()
        self.health.start()
        threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="router")
        self._server = aio.server(migration_thread_pool=threads, options=_OPTIONS)
        self._server.add_generic_rpc_handlers(self._handlers)
        listen = self._settings.listen
        address = f"[{listen}]" if ":" in listen else listen
        try:
            self.port = self._server.add_secure_port(f"{address}:{self.port}", self._credentials)
        except RuntimeError as error:  # what grpcio raises, whatever the cause
            self.health.stop()
            raise StorageError(
                OSError(
                    0,
                    "it cannot be listened on; free it, or choose another router.port",
                    f"the port {address}:{self.port}",
                )
            ) from error
        await self._server.start()
        self._watch = asyncio.create_task(self.queries.watch())

    async def stop(self) -> None:
        """Close the ports."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await self.queries.close()
        if self._server is not None:
            await self._server.stop(_GRACE_S)
        self.health.stop()

    def _in_loop(self, look: Callable[[], _T]) -> _T:
        """What `look` finds, for a thread of the health page.

        In the loop no count changes meanwhile. And one that hangs leaves the page without an
        answer, so that the router is started again.
        """

        async def looked() -> _T:
            return look()

        return asyncio.run_coroutine_threadsafe(looked(), self._loop).result(_LOOK_S)

    def _health(self) -> dict[str, object]:
        attached = [site.site for site in self.queries.attached()]
        return {
            "consortium": self.members.agreement.name,
            "sites": attached,
            "queries": self.queries.under_way,
        }


class _Metrics:
    """The router's counts for Prometheus' registry."""

    def __init__(self, queries: QueryService) -> None:
        self._queries = queries

    def collect(self) -> Iterator[Metric]:
        """Families of metrics, as of now."""
        queries = self._queries
        yield GaugeMetricFamily(
            "fedhash_router_queries_under_way", "Queries not ended.", queries.under_way
        )
        for name, text, counts in (
            ("queries", "Queries by outcome.", queries.outcomes),
            ("site_outcomes", "What became of queries at sites.", queries.site_outcomes),
        ):
            family = CounterMetricFamily(f"fedhash_router_{name}", text, labels=["outcome"])
            for outcome, count in sorted(counts.items()):
                family.add_metric([outcome], count)
            yield family
        sites = GaugeMetricFamily(
            "fedhash_router_site", "Of an attached site.", labels=["site", "fact"]
        )
        for each in queries.attached():
            for fact, value in (
                ("queued", each.queued),
                ("unanswered", each.unanswered),
                ("invalid_answers", each.invalid_answers),
                ("strange_answers", each.strange_answers),
                ("attachments", queries.attachments[each.site]),
            ):
                sites.add_metric([each.site, fact], value)
        yield sites


async def _run(folder: CoordinatorFolder) -> None:
    server = RouterServer(folder, folder.settings().router)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await server.start()
    _log.info("listening on port %d, health on %d", server.port, server.health.port)
    await ended.wait()
    _log.info("stopping")
    await server.stop()


def main() -> None:
    """Run the router of a coordinator's folder."""
    parser = argparse.ArgumentParser(prog="fedhash_server.router", description=_run.__doc__)
    parser.add_argument("folder", type=Path, help="the coordinator's folder")
    folder = CoordinatorFolder(parser.parse_args().folder)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(message)s")
    try:
        asyncio.run(_run(folder))
    except (FedhashError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
