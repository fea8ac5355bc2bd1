"""The socket at which relays ask the daemon: one frame in, one frame out.

1. A whole frame has to arrive within `receive_timeout_s`, however steadily it trickles.
2. A frame above the limit is answered with a refusal before it is read. All frames that arrive at
   the same time have room for two of the largest together; who asks for more is dropped.
3. A caller that hangs up while its answer is made is noticed where it matters (`RelayAnswers`).

    >>> relay_socket(Path("state/site.sock"), answers).start()
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from fedhash.errors import ProtocolError
from fedhash.rounds.training_messages import Refusal
from fedhash_client.daemon.unix_server import UnixServer
from fedhash_client.site_socket import FrameTooLongError, read_frame, write_frame

__all__ = ["FrameAnswers", "relay_socket"]

_CONNECTIONS = 4  # a SuperNode runs one relay a message, and a coordinator asks one thing at a time
_START_BYTES = 2 << 20  # what each may take before it is a large one
_RECEIVE_TIMEOUT_S = 60.0
_SEND_TIMEOUT_S = 60.0


class FrameAnswers(Protocol):
    """What answers frames, such as `RelayAnswers`."""

    max_frame_bytes: int

    def answer(self, frame: bytes, still_wanted: Callable[[], bool]) -> bytes:
        """The answer to one frame, whatever it holds."""
        ...


class _Room:
    """Bytes that the frames on their way hold together."""

    def __init__(self, most_bytes: int) -> None:
        self._free = most_bytes
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        with self._lock:
            if count > self._free:
                raise ProtocolError("frames on their way fill the room for all; ask again")
            self._free -= count

    def give_back(self, count: int) -> None:
        with self._lock:
            self._free += count


def relay_socket(
    path: Path, answers: FrameAnswers, *, receive_timeout_s: float = _RECEIVE_TIMEOUT_S
) -> UnixServer:
    """The service `relay`.

    Args:
        path: The socket file.
        answers: Called in the connections' threads.
        receive_timeout_s: Of a whole frame.
    """
    too_long = Refusal(
        "too_large",
        f"the message is longer than {answers.max_frame_bytes} bytes; this site's own file "
        "decides, by training.largest_model_parameters",
    )
    refusal = too_long.to_message().encode()
    room = _Room(2 * answers.max_frame_bytes + _CONNECTIONS * _START_BYTES)

    def converse(connection: socket.socket) -> None:
        taken = 0

        def take(count: int) -> None:
            nonlocal taken
            room.take(count)
            taken += count

        try:
            try:
                frame = read_frame(
                    connection,
                    largest_bytes=answers.max_frame_bytes,
                    timeout_s=receive_timeout_s,
                    reserve=take,
                )
            except FrameTooLongError:
                answer = refusal
            else:
                answer = answers.answer(frame, lambda: _waits(connection))
                del frame
            connection.settimeout(_SEND_TIMEOUT_S)
            write_frame(connection, answer)
        finally:
            room.give_back(taken)

    return UnixServer("relay", path, converse, connections=_CONNECTIONS)


def _waits(connection: socket.socket) -> bool:
    """Whether the peer has not hung up; it has nothing more to say, so anything else is noise."""
    connection.settimeout(0)
    try:
        return connection.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False
