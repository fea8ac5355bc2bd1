"""A site's long-lived half without its daemon: an agent in a thread, behind a Unix socket.

>>> with agent_behind(agent, Path("hospital-a.sock")): ...
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from fedhash.rounds.messages import Message
from fedhash.rounds.site import SiteAgent
from fedhash_client.site_socket import read_frame, write_frame

__all__ = ["agent_behind"]


@contextmanager
def agent_behind(agent: SiteAgent, path: Path) -> Iterator[None]:
    """Answer one frame for each connection; a relay may be killed in the middle of one."""
    path.unlink(missing_ok=True)
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:  # shut down
                    return
                with connection, suppress(ConnectionError):
                    data = read_frame(connection)
                    request = Message.decode(data, max_bytes=agent.max_message_bytes)
                    write_frame(connection, agent.handle(request).encode())

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
