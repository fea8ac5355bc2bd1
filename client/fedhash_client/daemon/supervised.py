"""A program that the daemon keeps running, as a service: a supervisor in a thread of its own.

>>> Supervised(Child("supernode", command, probe, environment)).start()
"""

from __future__ import annotations

import threading

from fedhash_process.service import Status
from fedhash_process.supervisor import Child, Supervisor

__all__ = ["Supervised"]

_STEP_S = 0.2


class Supervised:
    """The service around one program.

    Args:
        child: The program; its name is the service's.
    """

    def __init__(self, child: Child) -> None:
        self.name = child.name
        self.child = child
        self._supervisor = Supervisor([child])
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep_running, name=child.name, daemon=True)

    def start(self) -> None:
        """See :class:`fedhash_process.service.Service`."""
        self._thread.start()

    def stop(self) -> None:
        """See :class:`fedhash_process.service.Service`."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def status(self) -> Status:
        """See :class:`fedhash_process.service.Service`."""
        found = self._supervisor.status()[self.name]
        healthy = found.well and self._thread.is_alive()
        return {"healthy": healthy, "process": found.pid, "starts": found.starts}

    def _keep_running(self) -> None:
        while not self._stopping.is_set():
            self._supervisor.step()
            self._stopping.wait(_STEP_S)
        self._supervisor.stop()
