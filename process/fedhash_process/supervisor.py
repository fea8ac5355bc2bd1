"""Keeps child processes running: starts them again, and ends them with itself.

1. A child that ends is started again after one second, then two, four, and so on up to its pace's
   longest wait; one that lived long enough begins anew at one second.
2. A child serves when its probe says so. One that did not for too long is ended and started again:
   Flower's processes can stay alive, and hold their port, with a dead main thread.
3. Children die with their parent, even one that is killed (PR_SET_PDEATHSIG, prctl(2)): a child
   without a supervisor would hold its port against the next one. They ask for that themselves
   before they become the program: code between fork and exec would run beside gRPC's own, which
   aborts a child now and then. The parent is the *thread* that starts them, so one thread that
   lives as long as they makes all steps.
4. An ended child gets ten seconds after SIGTERM; then its whole process group is killed.
5. What a child prints goes where the parent's own output goes, or, where it is to be logged, to the
   parent's log, line by line, shortened.

    >>> supervisor = Supervisor([Child("gateway", ("nginx", "-c", "nginx.conf"), probe)])
    >>> supervisor.step()    # again and again, a few times a second
    >>> supervisor.stop()
"""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

__all__ = ["Child", "ChildStatus", "Pace", "Supervisor"]

_GRACE_S = 10.0
_LONGEST_LINE = 500
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# Arguments: the supervisor's process, the program and its arguments. 1 is PR_SET_PDEATHSIG of
# linux/prctl.h. Python ignores SIGPIPE, which the program would inherit.
_BECOME = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the supervisor has ended already")
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"{sys.argv[2]} cannot be started: {error.strerror}")
"""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pace:
    """Times of a child's supervision.

    Attributes:
        first_wait_s: Before the first start anew; it doubles.
        longest_wait_s: Where it stops doubling.
        good_life_s: After a life of so long, the waits begin anew.
        probe_every_s: Between two probes while it serves; else it is probed at each step.
        proof_s: A child that serves is well once it has lived so long.
        start_s: What it may take to start, before its silence counts.
        longest_silence_s: A child that did not serve for longer is ended.
    """

    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    good_life_s: float = 60.0
    probe_every_s: float = 2.0
    proof_s: float = 0.0
    start_s: float = 0.0
    longest_silence_s: float = 30.0


@dataclass(frozen=True)
class Child:
    """A program to keep running.

    Attributes:
        name: For logs and status.
        command: Program and arguments.
        probe: Whether the child serves; takes a few seconds at most.
        environment: All of it; None is the supervisor's own.
        folder: Where it runs; None is where the supervisor does.
        may_start: The child is not started before this says so.
        logged: Whether the log gets what it prints.
        pace: Times.
    """

    name: str
    command: tuple[str, ...]
    probe: Callable[[], bool]
    environment: Mapping[str, str] | None = None
    folder: Path | None = None
    may_start: Callable[[], bool] = lambda: True
    logged: bool = False
    pace: Pace = Pace()


@dataclass(frozen=True)
class ChildStatus:
    """How a child is.

    Attributes:
        pid: Its process, None while there is none.
        well: Whether it served when it was last asked, and has lived long enough to prove it.
        starts: How often it was started.
    """

    pid: int | None
    well: bool
    starts: int


class _Running:
    """One child and its history."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.process: subprocess.Popen[bytes] | None = None
        self.printed: threading.Thread | None = None
        self.starts = 0
        self.started = self.last_served = self.next_start = self.next_probe = 0.0
        self.wait_s = child.pace.first_wait_s
        self.serves = False


class Supervisor:
    """Keeps children running as long as `step` is called.

    Args:
        children: Started in this order.
        clock: Seconds that never run backwards.
    """

    def __init__(
        self, children: Sequence[Child], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._children = [_Running(child) for child in children]
        self._clock = clock

    @property
    def well(self) -> bool:
        """Whether all children are well."""
        return all(each.well for each in self.status().values())

    def status(self) -> dict[str, ChildStatus]:
        """Name to status, as of the last step; any thread may ask."""
        return {each.child.name: self._status_of(each) for each in self._children}

    def step(self) -> None:
        """Look at each child once, and start or end it."""
        for each in self._children:
            if each.process is None:
                if self._clock() >= each.next_start and each.child.may_start():
                    self._start(each)
            elif (code := each.process.poll()) is not None:
                self._ended(each, f"ended with status {code}")
            elif self._clock() >= each.next_probe:
                self._probe(each)

    def signal(self, name: str, number: int) -> None:
        """Send a child a signal, if it runs."""
        for each in self._children:
            if each.child.name == name and each.process is not None:
                each.process.send_signal(number)

    def stop(self) -> None:
        """End all children, the last one first."""
        for each in reversed(self._children):
            _end(each)

    def _status_of(self, each: _Running) -> ChildStatus:
        process, lived_s = each.process, self._clock() - each.started
        well = each.serves and lived_s >= each.child.pace.proof_s
        return ChildStatus(process.pid if process else None, well, each.starts)

    def _start(self, each: _Running) -> None:
        child = each.child
        each.starts += 1
        each.started = each.next_probe = self._clock()
        try:
            each.process = subprocess.Popen(  # noqa: S603 - the command is our own
                (sys.executable, "-I", "-S", "-c", _BECOME, str(os.getpid()), *child.command),
                env=child.environment,
                cwd=child.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if child.logged else None,
                stderr=subprocess.STDOUT if child.logged else None,
                start_new_session=True,
            )
        except OSError as error:
            self._ended(each, f"cannot be started ({error})")
            return
        _log.info("%s: started, process %d", child.name, each.process.pid)
        if each.process.stdout is not None:
            each.printed = threading.Thread(
                target=_log_lines, args=(child.name, each.process.stdout), daemon=True
            )
            each.printed.start()

    def _probe(self, each: _Running) -> None:
        pace = each.child.pace
        each.serves = each.child.probe()
        each.next_probe = self._clock() + (pace.probe_every_s if each.serves else 0)
        if each.serves:
            each.last_served = self._clock()
        elif (
            self._clock() - max(each.last_served, each.started + pace.start_s)
            > pace.longest_silence_s
        ):
            _end(each)
            self._ended(each, f"did not serve for {pace.longest_silence_s:g} s")

    def _ended(self, each: _Running, why: str) -> None:
        _sweep(each)
        pace = each.child.pace
        if self._clock() - each.started > pace.good_life_s:
            each.wait_s = pace.first_wait_s
        each.next_start = self._clock() + each.wait_s
        _log.warning("%s: %s; it is started again in %g s", each.child.name, why, each.wait_s)
        each.wait_s = min(2 * each.wait_s, pace.longest_wait_s)


def _end(each: _Running) -> None:
    if each.process is None:
        return
    each.process.terminate()
    try:
        each.process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        _log.warning("%s: does not end; it is killed", each.child.name)
    _sweep(each)


def _sweep(each: _Running) -> None:
    """Kill what is left of a child's process group, which would hold the port."""
    if each.process is not None:
        with suppress(ProcessLookupError):  # all of it has ended
            os.killpg(each.process.pid, signal.SIGKILL)
        each.process.wait()
    if each.printed is not None:
        each.printed.join(_GRACE_S)  # its last words stand in the log before what becomes of it
    each.process, each.printed, each.serves = None, None, False


def _log_lines(name: str, stream: IO[bytes]) -> None:
    printed = logging.getLogger(f"{__name__}.{name}")
    with stream:
        while line := stream.readline(4096):
            text = _COLOURS.sub("", line.decode(errors="replace")).strip()
            if text and not text.endswith(" :"):  # Flower's empty lines
                printed.info("%s", text[:_LONGEST_LINE])
