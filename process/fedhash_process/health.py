r"""`/health` and `/metrics` on loopback, for the monitoring of the machine that it runs on.

1. Whoever can reach the machine's loopback may ask, so there are liveness, names of sites and
   counts of messages, and nothing of data or of a query, not even how many patients train.
2. `/health` answers 503 when it says that something is not healthy, else 200.
3. A few requests are served at once, each for a few seconds at most.
4. Requests are answered in threads of their own: what is told has to bear that.

    $ curl http://127.0.0.1:9464/health
    {"site": "hospital-a", "healthy": true, "services": {"relay": true, "control": true}}
"""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST

from fedhash.errors import StorageError
from fedhash_process.service import Status

__all__ = ["HealthPage"]

_MOST_REQUESTS = 8
_REQUEST_S = 5.0

_log = logging.getLogger(__name__)


class HealthPage:
    """The service `health`.

    Args:
        port: On loopback; 0 takes any that is free.
        setting: The name of the setting that has the port, for the error.
        health: What `/health` tells; a member `healthy` decides the status.
        metrics: What `/metrics` tells, in Prometheus' text format.
    """

    name = "health"

    def __init__(
        self,
        port: int,
        setting: str,
        health: Callable[[], dict[str, Any]],
        metrics: Callable[[], bytes],
    ) -> None:
        self._port = port
        self._setting = setting
        self._health = health
        self._metrics = metrics
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._port if self._server is None else self._server.server_port

    def start(self) -> None:
        """Listen.

        Raises:
            StorageError: The port is taken.
        """

        class Handler(_Handler):
            health = staticmethod(self._health)
            metrics = staticmethod(self._metrics)

        try:
            self._server = _Server(("127.0.0.1", self._port), Handler)
        except OSError as error:
            raise StorageError(
                OSError(
                    error.errno,
                    f"{error.strerror}; free it, or choose another {self._setting}",
                    f"the port 127.0.0.1:{self._port}",
                )
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="health", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """See :class:`fedhash_process.service.Service`."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def status(self) -> Status:
        """See :class:`fedhash_process.service.Service`."""
        return {"healthy": self._thread is not None and self._thread.is_alive(), "port": self.port}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, *arguments: Any) -> None:
        self._room = threading.BoundedSemaphore(_MOST_REQUESTS)
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, *_: Any) -> None:
        _log.info("a request for health or metrics failed")


class _Handler(BaseHTTPRequestHandler):
    health: Callable[[], dict[str, Any]]
    metrics: Callable[[], bytes]

    def setup(self) -> None:
        super().setup()
        self._deadline = threading.Timer(_REQUEST_S, self._hang_up)
        self._deadline.daemon = True
        self._deadline.start()

    def finish(self) -> None:
        self._deadline.cancel()
        super().finish()

    def _hang_up(self) -> None:
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def do_GET(self) -> None:
        if self.path == "/health":
            found = self.health()
            status = HTTPStatus.OK if found.get("healthy", True) else HTTPStatus.SERVICE_UNAVAILABLE
            self._send(status, "application/json", json.dumps(found).encode() + b"\n")
        elif self.path == "/metrics":
            self._send(HTTPStatus.OK, CONTENT_TYPE_LATEST, self.metrics())
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"/health or /metrics\n")

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - its name there
        """Requests are not logged: a path may hold anything."""
