"""A site's daemon as a process of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = Path(sys.executable).parent
LONGEST_WAIT_S = 120


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(happened: Callable[[], bool], told: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + LONGEST_WAIT_S
    while not happened():
        if time.monotonic() > deadline:
            pytest.fail(f"it never happened: {told()[-5000:]}")
        time.sleep(0.02)


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"} | more


class DaemonProcess:
    """`fedhash-site run`; its log is a file."""

    def __init__(self, site_file: Path, **more: str) -> None:
        self.state = site_file.parent / "state"
        self.log = site_file.parent / "daemon.log"
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fedhash_client", "run", str(site_file)],
                env=environment(**more),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            if self.process.poll() is not None:
                pytest.fail(f"the daemon ended: {self.log.read_text()[-5000:]}")
            return '"event": "fedhash' in self.log.read_text().split("\0")[-1]

        wait_until(ready, self.log.read_text)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def memory_kb(self) -> int:
        """Resident."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        with self.log.open("a") as log:
            log.write("\0")

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(timeout=60)


@contextmanager
def daemon(site_file: Path, **more: str) -> Iterator[DaemonProcess]:
    process = DaemonProcess(site_file, **more)
    try:
        process.wait_until_ready()
        yield process
    finally:
        if process.process.poll() is None:
            process.kill()
        process.process.wait()
