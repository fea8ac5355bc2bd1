"""The site's outbound stream to the query router, over which it is asked and answers.

1. The site connects outwards; nothing listens for queries.
2. A broken stream is opened again after a pause that doubles up to a minute and is drawn at random,
   so that a router that comes back is not met by all sites at once. A stream that held for a while
   begins anew with a short pause.
3. Queries are answered by a few threads. So many may be without an answer that has left, and then
   no more are read: a router that floods, or reads no answers, fills its own connection.
4. An answer is signed with the site's identity: the asker believes no router either.
5. What the router sends is trusted in nothing: the answers are those of
   `fedhash.index.answering.QueryDesk`, and what is no message ends the stream.

    >>> stream = QueryStream(settings.network, desk.answer, current=lambda: searcher)
    >>> stream.start()
    >>> stream.status()["attached"]
    True
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeAlias

import grpc

from fedhash.errors import FedhashError, MessageError
from fedhash.index import SiteSearcher
from fedhash.search.answers import Found, Refusal
from fedhash.search.signed_answers import sign_found
from fedhash.search.wire.answers import encode_answer, encode_holds, read_to_site
from fedhash.search.wire.methods import ATTACH, SERVICE
from fedhash.search.wire.queries import SignedQuery
from fedhash.secagg.identity import SiteIdentity
from fedhash_client.network_settings import NetworkSettings
from fedhash_client.router_channel import explained, open_channel

__all__ = ["QueryStream"]

Answerer: TypeAlias = Callable[
    [SignedQuery, Callable[[], SiteSearcher | None], int], Found | Refusal
]

_THREADS = 4
_MOST_UNANSWERED = 64
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 60.0
_LOOKED_EVERY_S = 1.0
_HELD_S = 30.0  # a stream that lived so long was no failure to connect

_log = logging.getLogger(__name__)


class QueryStream:
    """The service `queries` of a daemon.

    Args:
        network: Where the router is and who the site is.
        answer: Decides and answers, from any thread.
        current: The archive to answer with, or None while there is none; looked at for each query,
            and every second, so that the router learns of another release.
        first_pause_s: Before the second try.

    Raises:
        ConfigurationError: Others may use the identity.
        StorageError: It cannot be read.
    """

    name = "queries"

    def __init__(
        self,
        network: NetworkSettings,
        answer: Answerer,
        current: Callable[[], SiteSearcher | None],
        *,
        first_pause_s: float = _FIRST_PAUSE_S,
    ) -> None:
        self._network = network
        self._identity = SiteIdentity.load(network.identity)
        self._answer = answer
        self._current = current
        self._first_pause_s = first_pause_s
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._stream: _Stream | None = None
        self._fault = ""
        self._connections = 0
        self._answers = 0

    def start(self) -> None:
        """Connect in the background.

        Raises:
            ConfigurationError: Others may use the key.
            StorageError: A file of the certificate cannot be read.
        """
        open_channel(self._network).close()  # what is wrong with the files is told at once
        self._thread = threading.Thread(target=self._run, name="queries", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Leave the router; answers under way are dropped."""
        self._stopping.set()
        with self._lock:
            if self._stream is not None:
                self._stream.close()
        if self._thread is not None:
            self._thread.join()

    def status(self) -> dict[str, str | int | float | bool | None]:
        """How it is. A router that is away is not this site's ill health."""
        alive = self._thread is not None and self._thread.is_alive()
        with self._lock:
            return {
                "healthy": alive,
                "attached": self._stream is not None and self._stream.accepted.is_set(),
                "router": self._network.router,
                "connections": self._connections,
                "answers": self._answers,
                "fault": self._fault,
            }

    def _run(self) -> None:
        pause_s = self._first_pause_s
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                self._serve()
                fault = "the router ended the stream"
            except grpc.RpcError as error:
                fault = str(explained(error, self._network.router))
            except FedhashError as error:
                fault = str(error)
            if self._stopping.is_set():
                return
            if time.monotonic() - began > _HELD_S:
                pause_s = self._first_pause_s
            with self._lock:
                if fault != self._fault:
                    _log.warning("no queries arrive: %s", fault)
                self._fault = fault
            # half of it at least, for a random pause may be none
            self._stopping.wait(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _serve(self) -> None:
        """One stream, until it ends."""
        with open_channel(self._network) as channel:
            stream = _Stream(channel, lambda: _release_of(self._current()))
            with self._lock:
                self._stream = stream
                self._connections += 1
            try:
                if self._stopping.is_set():  # `stop` found no stream to close
                    return
                with ThreadPoolExecutor(_THREADS, thread_name_prefix="queries") as threads:
                    for data in stream.queries(self._accepted):
                        number, signed = read_to_site(data)
                        if not stream.wait_for_room():
                            continue  # it has ended, which the loop finds out
                        threads.submit(self._work, stream, number, signed)
            finally:
                with self._lock:
                    self._stream = None
                stream.close()

    def _accepted(self) -> None:
        with self._lock:
            self._fault = ""
        _log.info("attached to the router %s", self._network.router)

    def _work(self, stream: _Stream, number: int, signed: SignedQuery) -> None:
        try:
            answer = self._answer(signed, self._current, time.time_ns() // 1_000_000)
            try:
                if isinstance(answer, Found):
                    answer = sign_found(signed, answer, self._identity)
                data = encode_answer(number, answer)
            except MessageError as error:
                data = encode_answer(number, Refusal("failed", str(error)))
            stream.send(data)
            with self._lock:
                self._answers += 1
        except Exception:  # noqa: BLE001 - see below
            # the router would wait for this answer for ever
            _log.exception("a query could not be answered")
            stream.close()


class _Stream:
    """One call of `Attach`."""

    def __init__(self, channel: grpc.Channel, release: Callable[[], str | None]) -> None:
        self._room = threading.BoundedSemaphore(_MOST_UNANSWERED)
        self.accepted = threading.Event()
        self._release = release
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        attach: Callable[..., Any] = channel.stream_stream(f"/{SERVICE}/{ATTACH}")
        self._call = attach(self._messages())

    def _messages(self) -> Iterator[bytes]:
        """What the site holds, first and after each change, and its answers."""
        told: str | None = ""
        while True:
            if (release := self._release()) != told:
                told = release
                yield encode_holds(release)
            with suppress(queue.Empty):
                data = self._outgoing.get(timeout=_LOOKED_EVERY_S)
                if data is None:
                    return
                yield data
                self._room.release()  # gRPC takes the next one when this one has left

    def wait_for_room(self) -> bool:
        """Wait until another query may be taken on; False where the stream has ended."""
        while not self._room.acquire(timeout=_LOOKED_EVERY_S):
            if not self._call.is_active():
                return False
        return True

    def send(self, data: bytes) -> None:
        """Queue an answer; there are no more than there is room for."""
        self._outgoing.put(data)

    def queries(self, accepted: Callable[[], None]) -> Iterator[bytes]:
        """What the router sends, until it ends the stream.

        Raises:
            grpc.RpcError: The stream broke.
        """
        self._call.initial_metadata()  # arrives when the router has admitted the site
        if self._call.is_active():
            self.accepted.set()
            accepted()
        yield from self._call

    def close(self) -> None:
        """End the stream; calling it twice does no harm."""
        self._outgoing.put(None)
        self._call.cancel()


def _release_of(searcher: SiteSearcher | None) -> str | None:
    return None if searcher is None else searcher.archive.release_id
