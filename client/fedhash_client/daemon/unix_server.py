"""A Unix socket that only the site's own user may open, with bounded connections.

1. The file has mode 0600 before anybody can connect. A file that a killed daemon left is replaced;
   the daemon's lock on its folder says that no other one lives.
2. At most so many connections are served at once; others wait in the kernel's queue.
3. A conversation that fails costs its own connection. What failed is counted, and named in the log
   by its type alone: a peer must not write into it.

    >>> server = UnixServer("relay", Path("state/site.sock"), converse, connections=4)
    >>> server.start()
"""

from __future__ import annotations

import logging
import socket
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fedhash.errors import ConfigurationError, FedhashError, Problem, StorageError
from fedhash_process.service import Status

__all__ = ["LONGEST_PATH_BYTES", "UnixServer"]

LONGEST_PATH_BYTES = 107  # sun_path of Linux, less its last zero
_STOP_S = 5.0

_log = logging.getLogger(__name__)


class UnixServer:
    """Listens, and gives each connection to `converse` in a thread of its own.

    Args:
        name: Of the service.
        path: The socket file; its folder is for the site's user alone.
        converse: Talks with one peer; the connection is closed afterwards.
        connections: How many at once.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        converse: Callable[[socket.socket], None],
        *,
        connections: int,
    ) -> None:
        self.name = name
        self._path = path
        self._converse = converse
        self._room = threading.Semaphore(connections)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._served = 0
        self._dropped = 0
        self._stopping = threading.Event()
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen.

        Raises:
            ConfigurationError: The path is too long for a socket, or another kind of file.
            StorageError: The operating system refuses.
        """
        if len(str(self._path).encode()) > LONGEST_PATH_BYTES:
            message = (
                f"the path of a socket has at most {LONGEST_PATH_BYTES} bytes; "
                "give the site a state folder with a shorter name"
            )
            raise ConfigurationError([Problem(self._path, None, message)])
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._remove_stale()
            listener.bind(str(self._path))
            self._path.chmod(0o600)  # nobody connects before listen
            listener.listen()
        except OSError as error:
            listener.close()
            raise StorageError(error, self._path) from error
        except FedhashError:
            listener.close()
            raise
        self._listener = listener
        self._thread = threading.Thread(target=self._accept, name=self.name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Hang up on everybody; a conversation that computes goes on for seconds at most."""
        self._stopping.set()
        if self._listener is None or self._thread is None:
            return
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._room.release()  # or that waits for room
        self._thread.join(_STOP_S)
        self._listener.close()
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        deadline = time.monotonic() + _STOP_S
        while self._open and time.monotonic() < deadline:
            time.sleep(0.01)
        self._path.unlink(missing_ok=True)

    def status(self) -> Status:
        """See :class:`fedhash_process.service.Service`."""
        thread = self._thread
        return {
            "healthy": thread is not None and thread.is_alive(),
            "served": self._served,
            "dropped": self._dropped,
        }

    def _remove_stale(self) -> None:
        try:
            mode = self._path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            message = "this is no socket, and the daemon needs the name; move the file away"
            raise ConfigurationError([Problem(self._path, None, message)])
        self._path.unlink()

    def _accept(self) -> None:
        listener = self._listener
        while listener is not None:
            self._room.acquire()
            if self._stopping.is_set():
                return
            try:
                connection, _ = listener.accept()
            except OSError as error:
                self._room.release()
                if self._stopping.is_set():
                    return
                _log.warning("%s: no connection can be accepted (%s)", self.name, error.strerror)
                self._stopping.wait(1)  # such as no more file descriptors
                continue
            with self._lock:
                self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                self._converse(connection)
            self._served += 1
        except (OSError, FedhashError) as error:
            self._dropped += 1
            _log.info("%s: a connection was dropped (%s)", self.name, type(error).__name__)
        except Exception:  # noqa: BLE001 - a mistake here must not lose the room of a connection
            self._dropped += 1
            _log.exception("%s: a connection failed", self.name)
        finally:
            with self._lock:
                self._open.discard(connection)
            self._room.release()
