"""`fedhash-coordinator run`: the gateway, the SuperLink and the query router, and their roster.

1. One of them runs for a folder at a time.
2. What would keep a server from starting - no nginx, a port that is taken, an expired certificate -
   is told before anything starts, with its remedy.
3. The roster is looked at every two seconds. When a site is enrolled, replaced or struck off, the
   SuperLink learns the keys and nginx reads its new configuration: no restart, no other command.
   The gateway opens once the SuperLink knows the keys, because a SuperNode that it does not know
   ends, while one that reaches nobody tries again.
4. `state/children.json` says how the servers are, for `fedhash-coordinator status`.

    >>> run_coordinator(CoordinatorFolder(Path("thorax")), stopping.is_set)
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from fcntl import LOCK_EX, LOCK_NB, flock
from functools import partial
from pathlib import Path

from fedhash.durability import replace_file
from fedhash.errors import FedhashError, ProtocolError, StorageError
from fedhash.offline import FLOWER_SWITCHES, exempt_loopback
from fedhash_process.service_manager import notify
from fedhash_process.supervisor import Child, Supervisor
from fedhash_server.coordinator_folder import CoordinatorFolder
from fedhash_server.coordinator_settings import CoordinatorSettings
from fedhash_server.gateway import nginx_configuration
from fedhash_server.ports import check_port_free, serves_health, serves_tls
from fedhash_server.roster import EnrolledSite, read_roster
from fedhash_server.superlink import SuperLink

__all__ = ["children_file", "children_of", "run_coordinator"]

_STEP_S = 0.25
_ROSTER_EVERY_S = 2.0
_LOOPBACK = "127.0.0.1"
_log = logging.getLogger(__name__)


def run_coordinator(folder: CoordinatorFolder, stopping: Callable[[], bool]) -> None:
    """Keep the servers running until `stopping` says so.

    Raises:
        CertificateError: A server's certificate is not valid, or a site's folder is wrong.
        ConfigurationError: The settings are wrong.
        ProtocolError: nginx is missing or refuses its configuration, a port is taken, or another
            process runs this folder.
        StorageError: The operating system refuses a file.
    """
    settings = folder.settings()
    folder.check_servers()
    with _only_one(folder):
        children = children_of(folder, settings)
        for name, listen, port in (
            ("gateway", settings.gateway.listen, settings.gateway.port),
            ("router", settings.router.listen, settings.router.port),
            ("superlink", _LOOPBACK, settings.superlink.port),
        ):
            check_port_free(name, listen, port)
        keeper = _Keeper(folder, settings, children)
        try:
            keeper.start()
            while not stopping():
                keeper.step()
                time.sleep(_STEP_S)
        finally:
            notify("STOPPING=1")
            keeper.stop()


def children_of(folder: CoordinatorFolder, settings: CoordinatorSettings) -> list[Child]:
    """The servers, as child processes.

    Raises:
        ProtocolError: nginx is not installed.
    """
    programs, state = Path(sys.executable).parent, folder.state.resolve()
    environment = (
        os.environ
        | FLOWER_SWITCHES
        | {
            # Flower starts programs of its own by their names
            "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "FLWR_HOME": str(state / "flwr"),
        }
    )
    exempt_loopback(environment)
    superlink = (
        str(programs / "flower-superlink"),
        *("--host", _LOOPBACK, "--port", str(settings.superlink.port)),
        *("--ssl-ca-certfile", str(folder.ca.resolve())),
        *("--ssl-certfile", str(folder.certificate("superlink").resolve())),
        *("--ssl-keyfile", str(folder.key("superlink").resolve())),
        *("--database", str(state / "superlink.sqlite")),
        *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
    )
    router = (sys.executable, "-m", "fedhash_server.router", str(folder.path.resolve()))
    gateway = settings.gateway
    return [
        Child(
            "superlink",
            superlink,
            partial(serves_tls, _LOOPBACK, settings.superlink.port, folder.ca),
            environment,
        ),
        Child(
            "gateway",
            _nginx(folder, settings),
            partial(serves_tls, gateway.listen, gateway.port, folder.ca),
        ),
        Child("router", router, partial(serves_health, settings.router.health_port)),
    ]


def children_file(folder: CoordinatorFolder) -> Path:
    """Where a running coordinator says how its servers are."""
    return folder.state / "children.json"


class _Keeper:
    """The servers of one folder, and the roster that they know."""

    def __init__(
        self, folder: CoordinatorFolder, settings: CoordinatorSettings, children: list[Child]
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._supervisor = Supervisor(
            [
                replace(each, may_start=self._keys_are_known) if each.name == "gateway" else each
                for each in children
            ]
        )
        self._gateway_text = ""
        self._known: dict[str, EnrolledSite] | None = None  # to the SuperLink
        self._superlink_starts = 0
        self._next_roster = 0.0
        self._told = ""
        self._fault = ""

    def start(self) -> None:
        try:
            (self._folder.state / "nginx").mkdir(mode=0o700, parents=True, exist_ok=True)
            self._write_gateway(read_roster(self._folder))
        except OSError as error:
            raise StorageError(error, self._folder.state) from error
        test = subprocess.run(  # noqa: S603 - the command is our own
            [*_nginx(self._folder, self._settings), "-t", "-q"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        if test.returncode != 0:
            raise ProtocolError(f"nginx refuses {self._folder.nginx_file}: {test.stderr.strip()}")

    def step(self) -> None:
        self._supervisor.step()
        if time.monotonic() >= self._next_roster:
            self._next_roster = time.monotonic() + _ROSTER_EVERY_S
            try:
                self._keep_roster()
                self._fault = ""
            except FedhashError as error:  # the servers go on with the roster that they know
                if str(error) != self._fault:
                    _log.warning("the roster cannot be kept: %s", error)
                self._fault = str(error)
        self._tell()

    def stop(self) -> None:
        self._supervisor.stop()
        children_file(self._folder).unlink(missing_ok=True)

    def _keys_are_known(self) -> bool:
        return self._known is not None

    def _keep_roster(self) -> None:
        roster = read_roster(self._folder)
        if any(name not in roster for name in self._known or ()):
            self._tell_gateway(roster)  # whoever was struck off is out at once
        superlink = self._supervisor.status()["superlink"]
        if not superlink.well or (
            self._known == roster and self._superlink_starts == superlink.starts
        ):
            return
        with SuperLink(self._folder, self._settings) as connection:
            changes = connection.keep_nodes(roster)
        self._known, self._superlink_starts = roster, superlink.starts
        self._tell_gateway(roster)
        for site in changes.refused:
            _log.warning(
                "superlink: Flower takes no key again that was struck off; have %s delete "
                "secrets/supernode.key, run 'fedhash-site init' again and be enrolled anew",
                site,
            )
        for what, sites in (
            ("registered", changes.registered),
            ("unregistered", changes.unregistered),
        ):
            if sites:
                _log.info("superlink: %s %s", what, ", ".join(sites))

    def _tell_gateway(self, roster: dict[str, EnrolledSite]) -> None:
        if self._write_gateway(roster):
            self._supervisor.signal("gateway", signal.SIGHUP)
            _log.info("gateway: knows %d sites", len(roster))

    def _write_gateway(self, roster: dict[str, EnrolledSite]) -> bool:
        """Write nginx.conf; whether it is another one than before."""
        text = nginx_configuration(self._folder, self._settings, roster)
        if text == self._gateway_text:
            return False
        try:
            replace_file(self._folder.nginx_file, text.encode())
        except OSError as error:
            raise StorageError(error, self._folder.nginx_file) from error
        self._gateway_text = text
        return True

    def _tell(self) -> None:
        """Write how the servers are, where it has changed."""
        status = {name: asdict(each) for name, each in self._supervisor.status().items()}
        told = json.dumps({"pid": os.getpid(), "children": status, "fault": self._fault})
        if told == self._told:
            return
        try:
            replace_file(children_file(self._folder), told.encode())
        except OSError as error:  # a full disk shall not end the servers
            _log.warning("%s cannot be written: %s", children_file(self._folder), error)
        self._told = told
        ill = [name for name, each in status.items() if not each["well"]]
        if not ill:
            notify("READY=1", "STATUS=all servers are well")
        else:
            notify(f"STATUS=not well: {', '.join(ill)}")


def _nginx(folder: CoordinatorFolder, settings: CoordinatorSettings) -> tuple[str, ...]:
    # an ordinary user's PATH often leaves out the folder where Debian puts nginx
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))
    program = shutil.which(settings.nginx, path=path)
    if program is None:
        raise ProtocolError(
            f"{settings.nginx} is not installed, through which sites reach this machine; run "
            "'apt-get install nginx-light', or name the program under nginx in coordinator.yaml"
        )
    # -e: otherwise nginx opens a log below /var, which an ordinary user may not
    prefix = str((folder.state / "nginx").resolve())
    return (program, "-e", "stderr", "-p", prefix, "-c", str(folder.nginx_file.resolve()))


@contextmanager
def _only_one(folder: CoordinatorFolder) -> Iterator[None]:
    try:
        folder.state.mkdir(mode=0o700, exist_ok=True)
        with (folder.state / "run.lock").open("w") as lock:
            try:
                flock(lock, LOCK_EX | LOCK_NB)
            except BlockingIOError as error:
                raise ProtocolError(
                    f"{folder.path} is being run by another process; stop it, or look at it with "
                    "'fedhash-coordinator status'"
                ) from error
            yield
    except OSError as error:
        raise StorageError(error, folder.state) from error
