"""The page on loopback: its answers, its limits, and a port that is taken."""

from __future__ import annotations

import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from fedhash.errors import StorageError
from fedhash_process import health
from fedhash_process.health import HealthPage


@pytest.fixture
def serve() -> Iterator[Callable[..., HealthPage]]:
    with ExitStack() as stack:

        def start(told: Callable[[], dict[str, Any]], port: int = 0) -> HealthPage:
            page = HealthPage(port, "daemon.health_port", told, lambda: b"answers 3\n")
            page.start()
            stack.callback(page.stop)
            return page

        yield start


def asked(page: HealthPage, path: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{page.port}{path}", timeout=60) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_the_status_is_that_of_health(serve: Callable[..., HealthPage]) -> None:
    told: dict[str, Any] = {"site": "hospital-a"}
    page = serve(lambda: told)
    assert asked(page, "/health") == (200, json.dumps(told).encode() + b"\n")
    told["healthy"] = True
    assert asked(page, "/health")[0] == 200
    told["healthy"] = False
    assert asked(page, "/health") == (503, json.dumps(told).encode() + b"\n")
    assert asked(page, "/metrics") == (200, b"answers 3\n")
    assert asked(page, "/health?of=patients")[0] == 404
    assert page.status() == {"healthy": True, "port": page.port}
    page.stop()
    assert page.status()["healthy"] is False


def test_a_port_that_is_taken_is_told_with_its_setting(serve: Callable[..., HealthPage]) -> None:
    with pytest.raises(StorageError, match=r"in use; free it, or choose another daemon\.health_po"):
        serve(dict, serve(dict).port)


def test_a_peer_that_asks_nothing_is_hung_up_on(
    serve: Callable[..., HealthPage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "_REQUEST_S", 0.2)
    with socket.create_connection(("127.0.0.1", serve(dict).port), timeout=60) as peer:
        peer.sendall(b"GET /health HTT")
        assert peer.recv(1) == b""


def test_a_few_are_served_at_once_and_the_next_is_hung_up_on(
    serve: Callable[..., HealthPage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "_MOST_REQUESTS", 2)
    inside, leave = threading.Semaphore(0), threading.Event()

    def told() -> dict[str, Any]:
        inside.release()
        leave.wait(60)
        return {}

    page = serve(told)
    asking = [threading.Thread(target=asked, args=(page, "/health")) for _ in range(2)]
    for each in asking:
        each.start()
        assert inside.acquire(timeout=60)
    with socket.create_connection(("127.0.0.1", page.port), timeout=60) as third:
        assert third.recv(1) == b""
    leave.set()
    for each in asking:
        each.join()
    assert asked(page, "/metrics")[0] == 200
