r"""The socket for the site's own commands: one JSON line in, one JSON line out.

A request is `{"command": "status", ...}`; an answer is `{"result": ...}` or `{"error": "..."}`.
Each part of the daemon registers its commands by name. The socket file has mode 0600: who can open
it is the site's own user, who could read the data as well; yet a line has bounds like any peer's.

    >>> control = ControlSocket(Path("state/control.sock"))
    >>> control.register("greet", lambda arguments: f"hello {arguments['who']}")
    >>> ask_daemon(Path("state/control.sock"), "greet", who="hospital-a")
    'hello hospital-a'
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from fedhash.errors import FedhashError, ProtocolError
from fedhash_client.daemon.unix_server import UnixServer
from fedhash_process.service import Status

__all__ = ["Command", "ControlSocket", "ask_daemon"]

Json: TypeAlias = Any
Command: TypeAlias = Callable[[Mapping[str, Json]], Json]

_CONNECTIONS = 8
_RECEIVE_TIMEOUT_S = 10.0
_LARGEST_REQUEST_BYTES = 1 << 20
_LARGEST_ANSWER_BYTES = 16 << 20


class ControlSocket:
    """The service `control`."""

    name = "control"

    def __init__(self, path: Path, *, receive_timeout_s: float = _RECEIVE_TIMEOUT_S) -> None:
        self._commands: dict[str, Command] = {}
        self._receive_timeout_s = receive_timeout_s
        self._server = UnixServer("control", path, self._converse, connections=_CONNECTIONS)

    def register(self, name: str, command: Command) -> None:
        """Make a command known; it is called with the request's other members.

        A FedhashError that it raises is told to the caller. It may be called from several threads.
        """
        self._commands[name] = command

    def start(self) -> None:
        """See :class:`fedhash_process.service.Service`."""
        self._server.start()

    def stop(self) -> None:
        """See :class:`fedhash_process.service.Service`."""
        self._server.stop()

    def status(self) -> Status:
        """See :class:`fedhash_process.service.Service`."""
        return self._server.status()

    def _converse(self, connection: socket.socket) -> None:
        line = _read_line(connection, _LARGEST_REQUEST_BYTES, self._receive_timeout_s)
        try:
            answer = {"result": self._result(line)}
        except FedhashError as error:
            answer = {"error": str(error)}
        connection.settimeout(self._receive_timeout_s)
        connection.sendall(json.dumps(answer, allow_nan=False).encode() + b"\n")

    def _result(self, line: bytes) -> Json:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ProtocolError("a request is one line of JSON") from error
        name = request.pop("command", None) if isinstance(request, dict) else None
        command = self._commands.get(name) if isinstance(name, str) else None
        if command is None:
            known = ", ".join(sorted(self._commands))
            raise ProtocolError(f"a request names one command of: {known}; upgrade the other side")
        return command(request)


def ask_daemon(
    path: Path, command: str, *, timeout_s: float | None = None, **arguments: Json
) -> Json:
    """Ask the daemon behind a control socket.

    Args:
        path: The socket.
        command: The command's name.
        timeout_s: None waits for as long as the command takes: a withdrawal for the training that
            is under way, an index for all studies.
        arguments: Of the command.

    Raises:
        ProtocolError: Nobody listens or answers in time, or the daemon cannot do it.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(path))
            connection.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            answer = json.loads(_read_line(connection, _LARGEST_ANSWER_BYTES, timeout_s))
    except TimeoutError as error:
        raise ProtocolError(
            f"the daemon at {path} has not answered {command!r} within {timeout_s:g} s; it may be "
            "busy, and go on with it: ask again, or see its log"
        ) from error
    except (OSError, ValueError) as error:
        raise ProtocolError(
            f"no daemon answers at {path} ({error}); start it with: fedhash-site run SITE.yaml"
        ) from error
    if not isinstance(answer, dict) or not answer.keys() & {"result", "error"}:
        raise ProtocolError(f"what answers at {path} is no daemon of fedhash")
    if "error" in answer:
        raise ProtocolError(str(answer["error"]))
    return answer["result"]


def _read_line(connection: socket.socket, largest_bytes: int, timeout_s: float | None) -> bytes:
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    line = bytearray()
    while not line.endswith(b"\n"):
        left_s = None if deadline is None else deadline - time.monotonic()
        if left_s is not None and left_s <= 0:
            raise TimeoutError("a line did not arrive in time")
        connection.settimeout(left_s)
        received = connection.recv(1 << 16)
        if not received:
            raise ConnectionError("the peer hung up before the end of a line")
        line += received
        if len(line) > largest_bytes:
            raise ProtocolError(f"a line has at most {largest_bytes} bytes")
    return bytes(line)
