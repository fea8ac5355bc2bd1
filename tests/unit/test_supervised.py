"""Programs that the daemon keeps running: real processes that end, hang and answer."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from daemon_process import free_port, wait_until

from fedhash_client.daemon.supervised import Pace, Supervised

QUICK = Pace(
    first_wait_s=0.05, longest_wait_s=0.2, well_s=1000, look_s=0.05, start_s=0.3, silent_looks=2
)
LISTENS = """
import socket, subprocess, sys, time
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
while True:
    listener.accept()[0].close()
"""
HANGS = "import time; print('here', flush=True); time.sleep(600)"


@contextmanager
def supervised(code: str, folder: Path, port: int, **environment: str) -> Iterator[Supervised]:
    command = [sys.executable, "-c", code, str(port)]
    service = Supervised("stand-in", command, environment, folder, port=port, pace=QUICK)
    service.start()
    try:
        yield service
    finally:
        service.stop()


def lives(process: Any) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


def test_a_program_that_is_killed_starts_again_and_ends_with_all_that_it_started(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with supervised(LISTENS, tmp_path, free_port()) as service:
        wait_until(lambda: bool(service.status()["healthy"]))
        first = service.status()["process"]
        assert isinstance(first, int)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: service.status()["starts"] == 2 and bool(service.status()["healthy"]))
        assert service.status()["process"] != first
    assert service.status()["process"] is None
    children = [r.getMessage().split()[1] for r in caplog.records if "child" in r.getMessage()]
    assert len(children) == 2
    wait_until(lambda: not any(lives(child) for child in children))


def test_a_program_whose_port_is_silent_is_ended_and_started_again(tmp_path: Path) -> None:
    with supervised(HANGS, tmp_path, free_port()) as service:
        wait_until(lambda: int(str(service.status()["starts"])) >= 3)
        assert not service.status()["healthy"]


def test_waits_between_starts_grow(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with supervised("raise SystemExit(305 % 256)", tmp_path, free_port()) as service:
        wait_until(lambda: int(str(service.status()["starts"])) >= 5)
    waits = [r.getMessage().split()[-2] for r in caplog.records if "again in" in r.getMessage()]
    assert waits[:4] == ["0.05", "0.1", "0.2", "0.2"]


def test_a_program_that_cannot_be_started_does_not_end_the_daemon(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service = Supervised("gone", [str(tmp_path / "none")], {}, tmp_path, port=1, pace=QUICK)
    service.start()
    wait_until(lambda: "cannot be started" in caplog.text)
    service.stop()


def test_a_program_sees_no_environment_but_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setenv("PYTHONPATH", "/of/this/test")
    code = "import os; print('sees', 'PYTHONPATH' in os.environ, os.environ['OWN'], 'x' * 9999)"
    with supervised(code, tmp_path, free_port(), OWN="yes"):
        wait_until(lambda: "sees False yes" in caplog.text)
    assert max(len(record.getMessage()) for record in caplog.records) <= 500
