"""Children are kept running, ended with their supervisor, and never started in a hurry."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedhash_process.supervisor import Child, Pace, Supervisor

FOREVER = (sys.executable, "-S", "-c", "import time; time.sleep(600)")
ENDING = (sys.executable, "-S", "-c", "raise SystemExit(3)")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def supervise(clock: Clock) -> Iterator[Callable[..., Supervisor]]:
    made: list[Supervisor] = []

    def make(*children: Child) -> Supervisor:
        made.append(Supervisor(children, clock))
        return made[-1]

    yield make
    for each in made:
        each.stop()


def until(supervisor: Supervisor, happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        supervisor.step()
        time.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        state = (Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def test_a_killed_child_is_started_again(
    supervise: Callable[..., Supervisor], clock: Clock
) -> None:
    supervisor = supervise(Child("a", FOREVER, lambda: True))
    until(supervisor, lambda: supervisor.well)
    first = supervisor.status()["a"].pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    until(supervisor, lambda: supervisor.status()["a"].pid is None)
    assert not supervisor.well
    supervisor.step()
    assert supervisor.status()["a"].pid is None, "not at once"
    clock.now += 1
    until(supervisor, lambda: supervisor.well)
    assert supervisor.status()["a"].starts == 2
    assert supervisor.status()["a"].pid != first


def test_a_child_that_cannot_stay_is_started_ever_more_rarely(
    supervise: Callable[..., Supervisor], clock: Clock
) -> None:
    supervisor = supervise(
        Child("a", ENDING, lambda: False),
        Child("b", ("/no/such/program",), lambda: True, pace=Pace(longest_wait_s=15)),
    )
    supervisor.step()
    until(supervisor, lambda: all(each.pid is None for each in supervisor.status().values()))
    starts = {name: [clock.now] for name in "ab"}
    for _ in range(400):  # half-second steps
        clock.now += 0.5
        before = supervisor.status()
        supervisor.step()
        until(supervisor, lambda: all(each.pid is None for each in supervisor.status().values()))
        for name, each in supervisor.status().items():
            if each.starts > before[name].starts:
                starts[name] = [*starts[name], clock.now]
    waits = {
        name: [later - earlier for earlier, later in itertools.pairwise(times)]
        for name, times in starts.items()
    }
    assert waits["a"] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert waits["b"][:6] == [1, 2, 4, 8, 15, 15]


def test_a_long_life_is_forgiven(supervise: Callable[..., Supervisor], clock: Clock) -> None:
    supervisor = supervise(Child("a", FOREVER, lambda: True))
    waits = []
    for life_s in (1, 1, 61, 1):
        until(supervisor, lambda: supervisor.well)
        clock.now += life_s
        os.kill(supervisor.status()["a"].pid or 0, signal.SIGKILL)
        until(supervisor, lambda: supervisor.status()["a"].pid is None)
        starts, began = supervisor.status()["a"].starts, clock.now
        while supervisor.status()["a"].starts == starts:
            clock.now += 1
            supervisor.step()
        waits.append(clock.now - began)
    assert waits == [1, 2, 1, 2]


def test_a_child_that_serves_no_more_is_ended(
    supervise: Callable[..., Supervisor], clock: Clock
) -> None:
    serves = [True]
    supervisor = supervise(Child("a", FOREVER, lambda: serves[0]))
    until(supervisor, lambda: supervisor.well)
    first = supervisor.status()["a"].pid
    serves[0] = False
    clock.now += 10
    supervisor.step()
    assert supervisor.status()["a"].pid == first, "a moment of silence is no death"
    clock.now += 21
    supervisor.step()
    assert supervisor.status()["a"].pid is None
    assert gone(first or 0)


def test_a_child_has_time_to_start_and_is_well_once_it_has_lived(
    supervise: Callable[..., Supervisor], clock: Clock
) -> None:
    serves = [False]
    pace = Pace(start_s=60, longest_silence_s=15, proof_s=10)
    supervisor = supervise(Child("a", FOREVER, lambda: serves[0], pace=pace))
    supervisor.step()
    first = supervisor.status()["a"].pid
    clock.now += 75
    supervisor.step()
    assert supervisor.status()["a"].pid == first
    clock.now += 1
    supervisor.step()
    assert supervisor.status()["a"].pid is None
    serves[0] = True
    clock.now += 1
    until(supervisor, lambda: supervisor.status()["a"].pid is not None)
    supervisor.step()
    clock.now += 9
    assert not supervisor.well
    clock.now += 1
    assert supervisor.well


def test_a_child_waits_until_it_may_start(supervise: Callable[..., Supervisor]) -> None:
    may = [False]
    supervisor = supervise(Child("a", FOREVER, lambda: True, may_start=lambda: may[0]))
    supervisor.step()
    assert supervisor.status()["a"].starts == 0
    may[0] = True
    supervisor.step()
    assert supervisor.status()["a"].starts == 1


def test_a_deaf_child_and_its_own_children_are_killed(
    supervise: Callable[..., Supervisor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedhash_process.supervisor._GRACE_S", 0.2)
    deaf = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "os.fork()\n"
        f"open({str(tmp_path)!r} + f'/{{os.getpid()}}', 'w').close()\n"
        "time.sleep(600)\n"
    )
    supervisor = supervise(Child("a", (sys.executable, "-S", "-c", deaf), lambda: True))
    until(supervisor, lambda: len(list(tmp_path.iterdir())) == 2)
    supervisor.stop()
    pids = [int(each.name) for each in tmp_path.iterdir()]
    until(supervise(), lambda: all(gone(pid) for pid in pids))


def test_what_a_killed_child_left_behind_is_killed(
    supervise: Callable[..., Supervisor], tmp_path: Path
) -> None:
    forks = (
        "import os, time\n"
        "os.fork()\n"
        f"open({str(tmp_path)!r} + f'/{{os.getpid()}}', 'w').close()\n"
        "time.sleep(600)\n"
    )
    supervisor = supervise(Child("a", (sys.executable, "-S", "-c", forks), lambda: True))
    until(supervisor, lambda: len(list(tmp_path.iterdir())) == 2)
    os.kill(supervisor.status()["a"].pid or 0, signal.SIGKILL)
    until(supervisor, lambda: supervisor.status()["a"].pid is None)
    pids = [int(each.name) for each in tmp_path.iterdir()]
    until(supervise(), lambda: all(gone(pid) for pid in pids))


def test_a_descendant_that_holds_the_pipe_keeps_nothing_waiting(
    supervise: Callable[..., Supervisor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In a session of its own it outlives the child, but neither thread nor pipe stay with it."""
    caplog.set_level("INFO")
    leaves = (
        "import os, time\n"
        "if os.fork():\n"
        f"    while not os.listdir({str(tmp_path)!r}):\n"  # or it would end with the child's group
        "        time.sleep(0.01)\n"
        "    print('last words', flush=True)\n"
        "    os._exit(0)\n"
        "os.setsid()\n"
        f"open({str(tmp_path)!r} + f'/{{os.getpid()}}', 'w').close()\n"
        "time.sleep(600)\n"
    )
    threads, files = threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))
    command = (sys.executable, "-S", "-c", leaves)
    supervisor = supervise(Child("a", command, lambda: True, logged=True))
    supervisor.step()
    until(supervisor, lambda: supervisor.status()["a"].pid is None)
    assert (threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))) == (
        threads,
        files,
    )
    assert "last words" in caplog.text
    (left,) = [int(each.name) for each in tmp_path.iterdir()]
    assert not gone(left)
    os.kill(left, signal.SIGKILL)


def test_a_group_is_killed_before_its_number_may_be_another_s(
    supervise: Callable[..., Supervisor], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []

    def kill_group(group: int, number: int) -> None:
        assert (Path("/proc") / str(group)).exists(), "the child was not reaped"
        killed.append(number)

    monkeypatch.setattr(os, "killpg", kill_group)
    supervisor = supervise(Child("a", ENDING, lambda: True))
    supervisor.step()
    until(supervisor, lambda: supervisor.status()["a"].pid is None)
    assert killed == [signal.SIGKILL]


def test_a_probe_that_raises_says_no(
    supervise: Callable[..., Supervisor], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    def probe() -> bool:
        raise RuntimeError("no port in this file")

    supervisor = supervise(Child("a", FOREVER, probe))
    supervisor.step()
    supervisor.step()
    assert (supervisor.well, supervisor.status()["a"].pid is None) == (False, False)
    assert "no port in this file" in caplog.text
    clock.now += 31
    supervisor.step()
    assert supervisor.status()["a"].pid is None, "it is ended as one that does not serve"


def test_what_a_child_prints_is_logged_and_it_sees_what_it_is_given(
    supervise: Callable[..., Supervisor],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setenv("PYTHONPATH", "/of/this/test")
    code = (
        "import os, sys\n"
        "print('sees', 'PYTHONPATH' in os.environ, os.environ['OWN'], os.getcwd(), flush=True)\n"
        "print('INFO :   \\n\\n\\x1b[31mred\\x1b[0m', 'x' * 9999, file=sys.stderr)\n"
    )
    command = (sys.executable, "-S", "-c", code)
    supervisor = supervise(
        Child("a", command, lambda: True, {"OWN": "yes"}, tmp_path, logged=True),
        Child("b", ("/no/such/program",), lambda: True, logged=True),
    )
    supervisor.step()
    until(supervisor, lambda: all(each.pid is None for each in supervisor.status().values()))
    printed: dict[str, list[str]] = {"a": [], "b": []}
    for record in caplog.records:
        if record.name.startswith("fedhash_process.supervisor."):
            printed[record.name[-1]].append(record.getMessage())
    assert printed["a"][:2] == [f"sees False yes {tmp_path}", "red " + "x" * 496]
    assert max(len(line) for line in printed["a"]) == 500
    assert printed["b"] == ["/no/such/program cannot be started: No such file or directory"]
    assert "it is started again in 1 s" in caplog.records[-1].getMessage(), "after its last words"


def test_a_folder_that_is_gone_ends_no_supervisor(
    supervise: Callable[..., Supervisor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = supervise(Child("a", FOREVER, lambda: True, folder=tmp_path / "gone"))
    supervisor.step()
    assert supervisor.status()["a"].pid is None
    assert "a: cannot be started" in caplog.text


def test_children_die_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from fedhash_process.supervisor import Child, Supervisor\n"
        f"s = Supervisor([Child('a', {FOREVER!r}, lambda: True)])\n"
        "s.step(); print(s.status()['a'].pid, flush=True); time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 30
    while not gone(child):
        assert time.monotonic() < deadline
        time.sleep(0.02)
