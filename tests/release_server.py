"""A release service on loopback, as the router runs it: a server of grpc.aio with sync handlers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
from grpc import aio

from fedhash_server.release_service import release_handler


def anybody(connection: object) -> str:
    """Admits every peer."""
    return "anybody"


@contextmanager
def release_server(
    folder: Path,
    admit: Callable[[object], str] = anybody,
    credentials: grpc.ServerCredentials | None = None,
) -> Iterator[str]:
    """The address of a server of a registry's folder."""
    started, ended = threading.Event(), threading.Event()
    port = 0

    async def serve() -> None:
        nonlocal port
        options = [("grpc.max_send_message_length", 1 << 20)]  # as the router's
        server = aio.server(migration_thread_pool=ThreadPoolExecutor(8), options=options)
        server.add_generic_rpc_handlers([release_handler(folder, admit)])
        if credentials is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        started.set()
        await asyncio.to_thread(ended.wait)
        await server.stop(0)

    thread = threading.Thread(target=asyncio.run, args=[serve()])
    thread.start()
    try:
        assert started.wait(30)
        yield f"127.0.0.1:{port}"
    finally:
        ended.set()
        thread.join(30)
