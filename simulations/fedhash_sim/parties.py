"""The parties of a consortium on one machine, each in processes of its own.

1. What its people type is run to its end (`_fedhash`) or asked whatever its end (`_asked`); what
   serves is opened (`_open`), with a log of its own, and waited for (`_wait`).
2. A party that ends while another is waited for is told with its last words.
3. All that was opened ends with `end`, and all that it started in turn.

    >>> class Demo(Parties):
    ...     def start(self):
    ...         self._open("hospital-a", "site", "run", "hospital-a/site.yaml")
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from fedhash.errors import FedhashError
from fedhash_sim.run_folder import explained

__all__ = ["Parties", "free_ports"]

_TIMEOUT_S = 600.0  # a busy machine takes ten times as long as an idle one
_GRACE_S = 20.0


class Parties:
    """What runs, by name.

    Args:
        logs: Folder of the parties' logs, NAME.log.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._started: list[subprocess.Popen[bytes]] = []
        self._running: dict[str, subprocess.Popen[bytes]] = {}  # of these, those that shall

    def end(self) -> None:
        """End every party, in order if it will, and return when none is left."""
        for party in self._started:
            _signal(party, signal.SIGTERM)
        for party in self._started:
            with suppress(subprocess.TimeoutExpired):
                party.wait(timeout=_GRACE_S)
            _signal(party, signal.SIGKILL)  # also what an ended party left
            party.wait()

    def _fedhash(self, program: str, *arguments: object) -> dict[str, Any]:
        """Run a command to its end; what it printed as JSON, if it did.

        Raises:
            FedhashError: It failed.
        """
        done = self._run(program, *arguments)
        if done.returncode != 0:
            raise FedhashError(f"{_typed(program, arguments)} failed: {done.stderr.strip()}")
        return json.loads(done.stdout) if "--json" in arguments else {}

    def _asked(self, program: str, *arguments: object) -> dict[str, Any]:
        """The JSON of a command that may fail; empty where it printed none."""
        done = self._run(program, *arguments)
        return json.loads(done.stdout) if done.stdout.startswith("{") else {}

    def _run(self, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(  # noqa: S603 - our own commands
                [*_command(program), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise FedhashError(
                f"{_typed(program, arguments)} did not end within {_TIMEOUT_S:g} s; see "
                f"{self._logs}"
            ) from error

    def _open(self, name: str, program: str, *arguments: object) -> None:
        """Start a party that ends with all others, and all that it started with it."""
        with explained(self._logs), (self._logs / f"{name}.log").open("ab") as log:
            party = subprocess.Popen(  # noqa: S603
                [*_command(program), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        self._started.append(party)
        self._running[name] = party

    def _wait(self, what: str, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _TIMEOUT_S
        while not happened():
            for name, party in self._running.items():
                if party.poll() is not None:
                    log = self._logs / f"{name}.log"
                    raise FedhashError(f"{name} has ended; the end of {log}: {_last_line(log)}")
            if time.monotonic() > deadline:
                raise FedhashError(f"waited {_TIMEOUT_S:g} s for {what}; see {self._logs}")
            time.sleep(0.5)


def _command(program: str) -> list[str]:
    """A command of this installation, whatever the PATH."""
    package = {"site": "client", "coordinator": "server", "sim": "sim"}[program]
    return [sys.executable, "-c", f"from fedhash_{package}.cli import app; app()"]


def _typed(program: str, arguments: Sequence[object]) -> str:
    return shlex.join([f"fedhash-{program}", *map(str, arguments)])


def _last_line(log: Path) -> str:
    with explained(log):
        return (log.read_text(encoding="utf-8", errors="replace").splitlines() or [""])[-1]


def _signal(party: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """Tell a party and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(party.pid, how)


def free_ports() -> Iterator[int]:
    """Ports that nobody listens on, below those that the system gives to outgoing connections."""
    for port in secrets.SystemRandom().sample(range(20_000, 32_000), 500):
        with closing(socket.socket()) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port
    raise FedhashError("no free ports between 20000 and 32000 on loopback")
