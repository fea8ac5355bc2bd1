r"""`/health` and `/metrics` of the router on loopback, in its own event loop.

Whoever reaches the machine's loopback may ask: there are names of attached sites and counts of
messages, and nothing of a query. A few requests at a time, each for seconds at most.

    $ curl http://127.0.0.1:9446/health
    {"consortium": "thorax", "sites": ["hospital-a", "hospital-b"], "queries": 3}
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from contextlib import suppress

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from fedhash.errors import StorageError

__all__ = ["HealthPage"]

_MOST_REQUESTS = 8
_REQUEST_S = 5.0
_LARGEST_HEAD_BYTES = 8192

_log = logging.getLogger(__name__)


class HealthPage:
    """The two pages.

    Args:
        port: On loopback; 0 takes any that is free.
        health: What `/health` tells.
        registry: What `/metrics` tells.
    """

    def __init__(
        self, port: int, health: Callable[[], dict[str, object]], registry: CollectorRegistry
    ) -> None:
        self.port = port
        self._health = health
        self._registry = registry
        self._room = asyncio.Semaphore(_MOST_REQUESTS)
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            StorageError: The port is taken.
        """
        try:
            self._server = await asyncio.start_server(
                self._converse, "127.0.0.1", self.port, limit=_LARGEST_HEAD_BYTES
            )
        except OSError as error:
            raise StorageError(
                OSError(
                    error.errno,
                    "it is taken; free it, or choose another router.health_port",
                    f"the port 127.0.0.1:{self.port}",
                )
            ) from error
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close the port."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if not self._room.locked():
                async with self._room, asyncio.timeout(_REQUEST_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(self._answer(head))
                    await writer.drain()
        except (OSError, TimeoutError, EOFError, asyncio.LimitOverrunError):
            _log.info("a request for health or metrics failed")
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def _answer(self, head: bytes) -> bytes:
        request = head.split(b"\r\n", 1)[0].split(b" ")
        if request[:2] == [b"GET", b"/health"]:
            return _page("200 OK", "application/json", json.dumps(self._health()).encode() + b"\n")
        if request[:2] == [b"GET", b"/metrics"]:
            return _page("200 OK", CONTENT_TYPE_LATEST, generate_latest(self._registry))
        return _page("404 Not Found", "text/plain", b"/health or /metrics\n")


def _page(status: str, kind: str, content: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + content
