"""The wire between the relay and the site's daemon: one frame each way over a Unix socket.

A frame is its length (8 bytes, big-endian) and that many bytes: 47 MB there and back take 94 ms,
where gRPC over the same socket takes 429 ms. One connection carries one request and one answer.
The socket file's permissions say who may ask; the daemon trusts nobody who does. Whoever reads a
frame keeps room for at most twice what has arrived of it: an announced length reserves nothing.

    >>> SiteSocket("hospital-a", "/run/fedhash/site.sock").answer(request, timeout_s=600)
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from fedhash.errors import ProtocolError

__all__ = ["FrameTooLongError", "SiteSocket", "read_frame", "write_frame"]

_LENGTH_BYTES = 8
_FIRST_BYTES = 1 << 20  # room for the start of a frame; it doubles as the frame fills it
LARGEST_FRAME_BYTES = 1 << 31  # Flower was seen to carry 360 MB; this guards against a wrong peer


class FrameTooLongError(ProtocolError):
    """A frame was announced that is longer than its reader takes."""


@dataclass(frozen=True, slots=True)
class SiteSocket:
    """The endpoint of a site whose daemon listens on a Unix socket.

    Attributes:
        name: Name of the site in the agreement.
        path: The socket file.
    """

    name: str
    path: str

    def answer(self, request: bytes, timeout_s: float) -> bytes:
        """Send `request` to the daemon and wait for its answer.

        Raises:
            ProtocolError: Nobody listens, the daemon hung up, or it was silent for `timeout_s`.
        """
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(timeout_s)
                connection.connect(self.path)
                with suppress(BrokenPipeError, ConnectionResetError):
                    write_frame(connection, request)  # a daemon may refuse before the end of it
                return read_frame(connection)
        except OSError as error:
            raise ProtocolError(
                f"the daemon of site {self.name!r} does not answer at {self.path} ({error}); "
                f"check that fedhash-site runs and that this user may open the socket"
            ) from error


def write_frame(connection: socket.socket, content: bytes) -> None:
    """Send one frame."""
    connection.sendall(len(content).to_bytes(_LENGTH_BYTES, "big"))
    connection.sendall(content)


def read_frame(
    connection: socket.socket,
    *,
    largest_bytes: int = LARGEST_FRAME_BYTES,
    timeout_s: float | None = None,
    reserve: Callable[[int], None] = lambda _: None,
) -> bytes:
    """Receive one frame.

    Args:
        connection: From a peer that nobody trusts.
        largest_bytes: A longer frame is refused unread.
        timeout_s: The whole frame has to arrive in this time, however steadily it trickles; None
            leaves the connection's own timeout of each receipt.
        reserve: Called with a number of bytes before memory is taken for them; may raise.

    Raises:
        FrameTooLongError: The peer announced more than `largest_bytes`.
        ConnectionError: The peer hung up before the end of the frame.
        TimeoutError: The time is up.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    length = int.from_bytes(_read_exactly(connection, _LENGTH_BYTES, deadline, reserve), "big")
    if length > largest_bytes:
        raise FrameTooLongError(
            f"a frame of {length} bytes was announced, at most {largest_bytes} are allowed; "
            f"the peer at this socket is not fedhash"
        )
    return bytes(_read_exactly(connection, length, deadline, reserve))


def _read_exactly(
    connection: socket.socket,
    length: int,
    deadline: float | None,
    reserve: Callable[[int], None],
) -> bytearray:
    content = bytearray()
    while len(content) < length:
        start = len(content)
        more = min(length - start, max(start, _FIRST_BYTES))
        reserve(more)
        content += bytes(more)
        with memoryview(content) as view:
            while start < len(view):
                if deadline is not None:
                    left_s = deadline - time.monotonic()
                    if left_s <= 0:
                        raise TimeoutError(f"{len(view)} bytes of a frame did not arrive in time")
                    connection.settimeout(left_s)
                received = connection.recv_into(view[start:])
                if received == 0:
                    missing = length - start
                    raise ConnectionError(
                        f"the peer hung up {missing} bytes before the end of a frame"
                    )
                start += received
    return content
