"""The daemon of one site: two sockets, a page of health, and the services that others add.

1. One daemon a state folder, by a lock that the kernel drops with the process; the folder is for
   the site's own user alone, and so is every file that the daemon makes (umask 077).
2. What is wrong with the site's files is told before anything listens. The sockets open last and
   close first, so whoever is answered finds all services there.
3. It ends at SIGTERM or SIGINT: nobody new is served, services stop in the reverse of their order,
   and a training under way has some seconds. What is left of it then is as after a kill: every file
   is whole, and the ledger has counted the step.
4. Nothing of a patient is logged or told (`logs`, `fedhash_process.health`).

    >>> daemon = SiteDaemon(Path("site.yaml"))
    >>> daemon.add(QueryStream(...))
    >>> daemon.control.register("search", search)
    >>> daemon.run()
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

import fedhash
from fedhash.agreement import Agreement
from fedhash.configuration import read_settings
from fedhash.errors import ConfigurationError, Problem, StorageError
from fedhash_client.daemon.control import ControlSocket
from fedhash_client.daemon.logs import start_logging
from fedhash_client.daemon.metrics import ServiceMetrics
from fedhash_client.daemon.paths import CONTROL_SOCKET, RELAY_SOCKET, state_folder_of
from fedhash_client.daemon.relay_answers import RelayAnswers
from fedhash_client.daemon.relay_socket import relay_socket
from fedhash_client.settings import SiteSettings
from fedhash_process.health import HealthPage
from fedhash_process.service import Service, Status
from fedhash_process.service_manager import notify, watchdog_interval_s

__all__ = ["SiteDaemon"]

_LOCK = "daemon.lock"
_LONGEST_BEAT_S = 5.0

_log = logging.getLogger(__name__)


class SiteDaemon:
    """One site's long-lived process.

    Attributes:
        site_file: The site's file.
        settings: What it holds.
        agreement: What the site signed.
        state_folder: Where everything is kept.
        answers: To the relays' frames.
        control: Where commands are registered.
        registry: Where metrics are registered.
        forgetting: Called when a patient withdraws, each to let go of what it holds of the data.

    Raises:
        ConfigurationError: A file is wrong, or they do not fit each other.
        StorageError: The operating system refuses the state folder.
    """

    def __init__(self, site_file: Path) -> None:
        self.site_file = site_file
        self.settings = read_settings(site_file, SiteSettings)
        self.agreement = read_settings(self.settings.agreement, Agreement)
        self.state_folder = state_folder_of(site_file, self.settings)
        _check_folder(self.state_folder)
        self.answers = RelayAnswers.of_site(
            site_file, self.settings, self.agreement, self.state_folder
        )
        self.forgetting: list[Callable[[], object]] = [self.answers.forget_data]
        self.control = ControlSocket(self.state_folder / CONTROL_SOCKET)
        self.registry = CollectorRegistry()
        self.registry.register(ServiceMetrics(self._statuses, lambda: dict(self.answers.counts)))
        self._services: list[Service] = []
        self._listening: list[Service] = [
            relay_socket(self.state_folder / RELAY_SOCKET, self.answers),
            self.control,
            HealthPage(
                self.settings.daemon.health_port,
                "daemon.health_port",
                self.health,
                lambda: generate_latest(self.registry),
            ),
        ]
        self._stop = threading.Event()
        self._started = time.time()
        self.control.register("status", lambda _: self.status())

    def add(self, service: Service) -> None:
        """Add a service, started after those that are there and before anything listens."""
        self._services.append(service)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            ConfigurationError: Another daemon runs with this state folder.
            StorageError: A socket or a port cannot be had.
        """
        os.umask(0o077)
        start_logging(self.settings.name, sys.stderr)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        with _locked(self.state_folder / _LOCK), ExitStack() as running:
            for service in self._all_services():
                service.start()
                running.callback(self._stop_service, service)
            _log.info("fedhash %s serves, as process %d", fedhash.__version__, os.getpid())
            notify("READY=1", "STATUS=serving")
            self._beat()
            notify("STOPPING=1", "STATUS=stopping")
            _log.info("stopping")

    def stop(self) -> None:
        """Let `run` end."""
        self._stop.set()

    def health(self) -> dict[str, Any]:
        """Who is healthy."""
        services = {name: bool(status["healthy"]) for name, status in self._statuses().items()}
        return {
            "site": self.settings.name,
            "healthy": all(services.values()),
            "services": services,
        }

    def status(self) -> dict[str, Any]:
        """What `fedhash-site status` shows to the site's own user."""
        return {
            "site": self.settings.name,
            "version": fedhash.__version__,
            "process": os.getpid(),
            "up_s": round(time.time() - self._started),
            "agreement": f"{self.agreement.name} {self.agreement.digest()[:12]}",
            "healthy": self.health()["healthy"],
            "services": self._statuses(),
            "answers": dict(sorted(self.answers.counts.items())),
        }

    def _statuses(self) -> dict[str, Status]:
        return {service.name: service.status() for service in self._all_services()}

    def _all_services(self) -> list[Service]:
        return [*self._services, *self._listening]

    def _beat(self) -> None:
        """Tell the service manager how it is, until somebody ends it."""
        due_s = watchdog_interval_s()
        told = ""
        while not self._stop.wait(min(due_s or _LONGEST_BEAT_S, _LONGEST_BEAT_S)):
            found = self.health()
            ailing = [name for name, healthy in found["services"].items() if not healthy]
            status = f"ailing: {', '.join(ailing)}" if ailing else "serving"
            if status != told:
                _log.info("%s", status)
                told = status
            # own threads that died are this process's fault, and a restart mends them
            if not {"relay", "control"} & set(ailing):
                notify("WATCHDOG=1", f"STATUS={status}")

    @staticmethod
    def _stop_service(service: Service) -> None:
        try:
            service.stop()
        except Exception:  # noqa: BLE001 - the others must stop all the same
            _log.exception("the service %s did not stop", service.name)


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = folder.stat().st_mode
    except OSError as error:
        raise StorageError(error, folder) from error
    if not stat.S_ISDIR(mode) or mode & 0o077:
        message = "others may open the folder of the site's state; run: chmod 700 on it"
        raise ConfigurationError([Problem(folder, None, message)])


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock; the file stays, for removing it would let two daemons hold two locks."""
    try:
        file = path.open("a+", encoding="ascii")
    except OSError as error:
        raise StorageError(error, path) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read(20).strip() or "unknown"
            message = (
                f"a daemon (process {holder}) runs with this state folder already; stop it, or "
                "give this site a folder of its own"
            )
            raise ConfigurationError([Problem(path, None, message)]) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
