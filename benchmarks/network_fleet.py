"""A Flower network on loopback for `bench_network`: a SuperLink and SuperNodes, all processes.

Flower's own commands run with their defaults and without TLS; the SuperNodes may be started as a
site of this project starts them. Linux only: whatever the programs start descends from this
process, also when what started it has ended, and is killed at the end.

    >>> with fleet(folder, ["site-0", "site-1", "site-2"], own_supernodes=True) as network:
    ...     network.run(app, {"rounds": 3}, watch=lambda: None, timeout_s=120)
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from benchmarks.process_memory import process_tree

__all__ = ["Fleet", "fleet", "socket_of"]

_CONNECTION = "bench"
_POLL_S = 0.05
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 10.0
_SET_CHILD_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of linux/prctl.h
_TOLD_BYTES = 5000


class Fleet:
    """The running network; `fleet` makes it.

    Attributes:
        log: What all programs print.
    """

    def __init__(self, folder: Path, superlink: str) -> None:
        self.log = folder / "flower.log"
        home = folder / "flwr"
        home.mkdir()
        (home / "config.toml").write_text(
            f'[superlink.{_CONNECTION}]\naddress = "{superlink}"\ninsecure = true\n',
            encoding="utf-8",
        )
        programs = Path(sys.executable).parent
        self._environment = os.environ | {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def run(
        self,
        app: Path,
        config: Mapping[str, str | int],
        *,
        watch: Callable[[], None],
        timeout_s: float,
    ) -> None:
        """Run an app to its end.

        Args:
            app: The app's folder.
            config: Its run config.
            watch: Called twenty times a second while the app runs, and once more at its end.
            timeout_s: The most that the run may take.

        Raises:
            RuntimeError: It took longer.
        """
        # a string of JSON is one of TOML as well
        text = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
        arguments = ("run", str(app), _CONNECTION, "--stream", "--run-config", text)
        deadline = time.monotonic() + timeout_s
        with self.program(_flower("flwr"), *arguments) as run:
            while run.poll() is None:
                watch()
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{app.name} took more than {timeout_s:g} s")
                time.sleep(_POLL_S)
        watch()

    def told(self) -> str:
        """The end of the log, for an error message."""
        text = self.log.read_bytes()[-_TOLD_BYTES:].decode(errors="replace")
        return f"{self.log} ends with\n{text}"

    @contextmanager
    def program(self, *command: str) -> Iterator[subprocess.Popen[bytes]]:
        """A program in Flower's environment, stopped at the end of the block."""
        with self.log.open("ab") as log:
            program = subprocess.Popen(  # noqa: S603 - Flower's commands, beside this Python
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal's Ctrl-C is for this process alone
            )
        with program:
            try:
                yield program
            finally:
                program.terminate()
                try:
                    program.wait(_STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    program.kill()


@contextmanager
def fleet(folder: Path, sites: Sequence[str], *, own_supernodes: bool) -> Iterator[Fleet]:
    """A SuperLink and a SuperNode a site, whose daemon listens at `socket_of(folder, site)`.

    Args:
        folder: For Flower's home, the log and the sockets.
        sites: The sites' names.
        own_supernodes: Whether SuperNodes look for messages as this project has them do it, and not
            as Flower does.

    Raises:
        OSError: This is not Linux.
        RuntimeError: The SuperLink does not start.
    """
    if sys.platform != "linux" or ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError("Linux is needed, where orphans can be found again")
    port = _free_port()
    superlink = f"127.0.0.1:{port}"
    with ExitStack() as programs:
        network = Fleet(folder, superlink)
        programs.callback(_kill_descendants)
        arguments = ("--insecure", "--host", "127.0.0.1", "--port", str(port))
        program = programs.enter_context(network.program(_flower("flower-superlink"), *arguments))
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not _listens(port):
            if program.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the SuperLink does not start; {network.told()}")
            time.sleep(_POLL_S)
        supernode = (
            (sys.executable, "-m", "benchmarks.network_supernode")
            if own_supernodes
            else (_flower("flower-supernode"),)
        )
        for place, site in enumerate(sites):
            own = f'site="{site}" place={place} site-socket="{socket_of(folder, site)}"'
            programs.enter_context(
                network.program(
                    *(*supernode, "--insecure", "--superlink", superlink),
                    *("--host", "127.0.0.1", "--port", str(_free_port()), "--node-config", own),
                )
            )
        yield network


def socket_of(folder: Path, site: str) -> Path:
    """Where the SuperNode of a site looks for the site's daemon."""
    return folder / f"{site}.sock"


def _flower(command: str) -> str:
    return str(Path(sys.executable).parent / command)


def _kill_descendants() -> None:
    """Kill whatever the programs left, and wait for it."""
    for process in process_tree(os.getpid())[1:]:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:  # it ended by itself
            continue
    with suppress(ChildProcessError):  # none is left
        while True:
            os.waitpid(-1, 0)


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
