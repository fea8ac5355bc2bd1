"""What systemd is told, if there is one."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from fedhash_process.service_manager import notify, watchdog_interval_s


@pytest.mark.parametrize("kind", ["file", "abstract"])
def test_systemd_is_told(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name = str(tmp_path / "n") if kind == "file" else f"@fedhash-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0"))
        notify("READY=1", "STATUS=serving")
        assert manager.recv(100) == b"READY=1\nSTATUS=serving"
    assert not caplog.records
    notify("STOPPING=1")  # one that has gone ends no daemon
    assert "the service manager cannot be told" in caplog.text


def test_without_systemd_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")


def test_life_is_due_at_half_of_what_the_manager_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    assert watchdog_interval_s() is None
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert watchdog_interval_s() == 15
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_interval_s() is None
