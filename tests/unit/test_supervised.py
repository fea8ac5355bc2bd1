"""A program that the daemon keeps running, as a service."""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path

from daemon_process import free_port, wait_until

from fedhash_client.daemon.supernode import _answers
from fedhash_client.daemon.supervised import Supervised
from fedhash_process.supervisor import Child, Pace

LISTENS = """
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    listener.accept()[0].close()
"""


def test_a_program_is_healthy_while_its_port_answers_and_ends_with_the_service(
    tmp_path: Path,
) -> None:
    port = free_port()
    command = (sys.executable, "-S", "-c", LISTENS, str(port))
    pace = Pace(first_wait_s=0.05, probe_every_s=0.05, proof_s=0.1)
    service = Supervised(
        Child("stand-in", command, partial(_answers, port), {}, tmp_path, pace=pace)
    )
    assert service.status() == {"healthy": False, "process": None, "starts": 0}
    service.start()
    try:
        wait_until(lambda: bool(service.status()["healthy"]))
        first = service.status()["process"]
        assert isinstance(first, int)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: service.status()["starts"] == 2 and bool(service.status()["healthy"]))
        assert service.status()["process"] != first
    finally:
        service.stop()
    assert service.status() == {"healthy": False, "process": None, "starts": 2}
    assert not _answers(port)
