"""A program that the daemon keeps running: started again with back-off, and watched by its port.

1. A program that ends is started again after 1, 2, 4, ... 15 s. One that was well for two minutes
   begins that count anew.
2. A program may live with a dead core: when its port has not answered for three looks in a row,
   after the time that it has to start, it is ended and started again.
3. It runs in a process group of its own, and the whole group ends with it.
4. What it prints goes to the daemon's log, line by line, shortened.

    >>> Supervised("supernode", command, environment, folder, port=9465).start()
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fedhash_process.service import Status

__all__ = ["Pace", "Supervised"]

_LONGEST_LINE = 500
_END_S = 10.0
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pace:
    """Times of a supervision.

    Attributes:
        first_wait_s: Before the first start anew; it doubles.
        longest_wait_s: Where it stops doubling.
        well_s: After so long of health, the waits begin anew.
        look_s: Between two looks at the port.
        proof_s: A program that answers is healthy once it has lived so long.
        start_s: Before the first look that counts.
        silent_looks: So many in a row without an answer end the program.
    """

    first_wait_s: float = 1.0
    longest_wait_s: float = 15.0
    well_s: float = 120.0
    look_s: float = 5.0
    proof_s: float = 15.0
    start_s: float = 60.0
    silent_looks: int = 3


class Supervised:
    """The service around one program.

    Args:
        name: Of the service.
        command: The program and its arguments.
        environment: All of it.
        folder: Where it runs.
        port: On loopback, where it answers when it is well.
        pace: Times.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        *,
        port: int,
        pace: Pace = Pace(),
    ) -> None:
        self.name = name
        self._command = list(command)
        self._environment = dict(environment)
        self._folder = folder
        self._port = port
        self._pace = pace
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep_running, name=name, daemon=True)
        self._starts = 0
        self._answering = False
        self._began = 0.0
        self._process: subprocess.Popen[bytes] | None = None

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
        process = self._process
        running = process is not None and process.poll() is None
        return {
            "healthy": running
            and self._answering
            and time.monotonic() - self._began >= self._pace.proof_s,
            "process": process.pid if running and process is not None else None,
            "starts": self._starts,
        }

    def _keep_running(self) -> None:
        wait_s = self._pace.first_wait_s
        while not self._stopping.is_set():
            self._began = time.monotonic()
            try:
                self._run_once()
            except OSError as error:
                _log.error("%s cannot be started (%s)", self.name, error.strerror)
            self._answering = False
            if self._stopping.is_set():
                return
            if time.monotonic() - self._began > self._pace.well_s:
                wait_s = self._pace.first_wait_s
            _log.warning("%s has ended; it starts again in %g s", self.name, wait_s)
            self._stopping.wait(wait_s)
            wait_s = min(2 * wait_s, self._pace.longest_wait_s)

    def _run_once(self) -> None:
        with subprocess.Popen(  # noqa: S603 - a command of ours
            self._command,
            env=self._environment,
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process:
            self._process = process
            self._starts += 1
            printed = threading.Thread(target=self._log_lines, args=(process.stdout,), daemon=True)
            printed.start()
            try:
                self._watch(process)
            finally:
                self._end(process)
                printed.join(_END_S)

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        """Return when the program has ended, or has to."""
        silent = 0
        while not self._stopping.wait(self._pace.look_s if self._answering else 0.2):
            if process.poll() is not None:
                return
            self._answering = self._answers()
            if self._answering:
                silent = 0
            elif time.monotonic() - self._began > self._pace.start_s:
                silent += 1
                if silent >= self._pace.silent_looks:
                    _log.warning("%s does not answer at its port %d", self.name, self._port)
                    return
                self._stopping.wait(self._pace.look_s)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=self._pace.look_s):
                return True
        except OSError:
            return False

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        with suppress(ProcessLookupError):
            process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)
        with suppress(ProcessLookupError):  # what is left of its group, and itself
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _log_lines(self, stream: IO[bytes]) -> None:
        printed = logging.getLogger(f"{__name__}.{self.name}")
        while line := stream.readline(4096):
            text = _COLOURS.sub("", line.decode(errors="replace")).strip()
            if text and not text.endswith(" :"):  # Flower's empty lines
                printed.info("%s", text[:_LONGEST_LINE])
