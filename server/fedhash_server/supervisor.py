"""Keeps child processes running: starts them again, and ends them with itself.

1. A child that ends is started again after one second, then two, four, and so on up to a minute;
   one that lived for a minute begins anew at one second.
2. A child is well when its probe says so. One that was not well for half a minute is ended and
   started again: Flower's processes can stay alive, and hold their port, with a dead main thread.
3. Children die with their parent, even one that is killed (PR_SET_PDEATHSIG, prctl(2)): a child
   without a supervisor would hold its port against the next one. They ask for that themselves
   before they become the program: code between fork and exec would run beside gRPC's own, which
   aborts a child now and then.
4. An ended child gets ten seconds after SIGTERM; then its whole process group is killed.

    >>> supervisor = Supervisor([Child("gateway", ("nginx", "-c", "nginx.conf"), probe)])
    >>> supervisor.step()    # again and again, a few times a second
    >>> supervisor.stop()
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["Child", "ChildStatus", "Supervisor"]

_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 60.0
_GOOD_LIFE_S = 60.0
_PROBE_EVERY_S = 2.0
_LONGEST_SILENCE_S = 30.0
_GRACE_S = 10.0
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
class Child:
    """A program to keep running.

    Attributes:
        name: For logs and status.
        command: Program and arguments.
        probe: Whether the child serves; takes a few seconds at most.
        environment: Beside the supervisor's own.
        may_start: The child is not started before this says so.
    """

    name: str
    command: tuple[str, ...]
    probe: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict)
    may_start: Callable[[], bool] = lambda: True


@dataclass(frozen=True)
class ChildStatus:
    """How a child is.

    Attributes:
        pid: Its process, None while there is none.
        well: Whether it served when it was last asked.
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
        self.starts = 0
        self.started = self.last_well = self.next_start = self.next_probe = 0.0
        self.wait_s = _FIRST_WAIT_S
        self.well = False


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
        """Whether all children served when they were last asked."""
        return all(running.well for running in self._children)

    def status(self) -> dict[str, ChildStatus]:
        """Name to status, as of the last step."""
        return {
            each.child.name: ChildStatus(
                each.process.pid if each.process else None, each.well, each.starts
            )
            for each in self._children
        }

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
            each.process, each.well = None, False

    def _start(self, each: _Running) -> None:
        child = each.child
        each.starts += 1
        each.started = each.next_probe = self._clock()
        try:
            each.process = subprocess.Popen(  # noqa: S603 - the command is our own
                (sys.executable, "-I", "-S", "-c", _BECOME, str(os.getpid()), *child.command),
                env=os.environ | dict(child.environment),
                stdin=subprocess.DEVNULL,
                process_group=0,
            )
        except OSError as error:
            self._ended(each, f"cannot be started ({error})")
        else:
            _log.info("%s: started, process %d", child.name, each.process.pid)

    def _probe(self, each: _Running) -> None:
        each.well = each.child.probe()
        each.next_probe = self._clock() + (_PROBE_EVERY_S if each.well else 0)
        if each.well:
            each.last_well = self._clock()
        elif self._clock() - max(each.last_well, each.started) > _LONGEST_SILENCE_S:
            _end(each)
            self._ended(each, f"did not serve for {_LONGEST_SILENCE_S:g} s")

    def _ended(self, each: _Running, why: str) -> None:
        if each.process is not None:
            _kill_group(each.process.pid)  # what it left behind would hold the port
            each.process.wait()
        each.process, each.well = None, False
        if self._clock() - each.started > _GOOD_LIFE_S:
            each.wait_s = _FIRST_WAIT_S
        each.next_start = self._clock() + each.wait_s
        _log.warning("%s: %s; it is started again in %g s", each.child.name, why, each.wait_s)
        each.wait_s = min(2 * each.wait_s, _LONGEST_WAIT_S)


def _end(each: _Running) -> None:
    if each.process is None:
        return
    each.process.terminate()
    try:
        each.process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        _log.warning("%s: does not end; it is killed", each.child.name)
    _kill_group(each.process.pid)
    each.process.wait()


def _kill_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return  # all of it has ended
