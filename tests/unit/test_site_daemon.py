"""`fedhash-site run` and `status` as processes: start, answers, hostile callers, kill and end."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from daemon_process import DaemonProcess, daemon, environment, free_port, wait_until
from site_folder import make_site
from small_federation import AGREEMENT, SITES, model_and_layout, round_settings, run_plan

from fedhash.learning.loss import Margins
from fedhash.privacy import read_ledger
from fedhash.privacy.settings import SitePrivacySettings
from fedhash.rounds.messages import Message
from fedhash.rounds.training_messages import TrainRequest
from fedhash_client.daemon.control import ask_daemon
from fedhash_client.site_socket import SiteSocket, write_frame

HOSTILE_MESSAGES = int(os.environ.get("FEDHASH_HOSTILE_MESSAGES", "400"))


def site(folder: Path, **sections: Any) -> Path:
    """A site that works alone and takes part in plain rounds."""
    ports = {"health_port": free_port(), "supernode_port": free_port()}
    training = {"aggregations": ["plain"], "largest_model_parameters": 100_000}
    return make_site(
        folder, "site-0", AGREEMENT, training=training, daemon=ports, network=None, **sections
    )


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with daemon(site(tmp_path_factory.mktemp("site"))) as process:
        yield process


def train_request(*, private: bool = False) -> bytes:
    privacy = SitePrivacySettings(
        mode="site", clip_norm=1.0, noise_multiplier=2.0, sampling_rate=0.5
    )
    terms: dict[str, Any] = {"privacy": privacy, "weighting": "uniform"} if private else {}
    plan = run_plan(round_settings(learning={"control_variates": False}, **terms))
    start = Margins.constant(3, 0.3)
    return (
        TrainRequest(plan, 1, SITES, {}, model_and_layout()[0], start, None).to_message().encode()
    )


def trains(process: DaemonProcess, *, private: bool = False) -> bool:
    relay = SiteSocket("site-0", str(process.state / "site.sock"))
    answer = relay.answer(train_request(private=private), 60)
    return Message.decode(answer, max_bytes=1 << 24).kind == "train_reply"


def site_command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fedhash_client", *map(str, arguments)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def page(process: DaemonProcess, path: str) -> tuple[int, str]:
    port = ask_daemon(process.state / "control.sock", "status")["services"]["health"]["port"]
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_relay_is_answered_and_it_is_counted(running: DaemonProcess) -> None:
    assert trains(running)
    status, metrics = page(running, "/metrics")
    assert status == 200
    assert 'fedhash_answers_total{kind="train_reply"}' in metrics
    status, health = page(running, "/health")
    assert (status, json.loads(health)["healthy"]) == (200, True)
    assert page(running, "/elsewhere")[0] == 404


def test_status_is_told_to_people_and_to_programs(running: DaemonProcess) -> None:
    told = site_command("status", running.state.parent / "site.yaml")
    assert told.returncode == 0, told.stderr
    assert "service relay: healthy True" in told.stdout
    as_json = site_command("status", running.state.parent / "site.yaml", "--json")
    assert json.loads(as_json.stdout)["site"] == "site-0"


def test_a_second_daemon_of_the_folder_does_not_start(running: DaemonProcess) -> None:
    second = site_command("run", running.state.parent / "site.yaml")
    assert second.returncode == 1
    assert f"process {running.process.pid}" in second.stderr.replace("\n", " ")
    assert trains(running)


def test_nothing_of_the_state_is_open_to_others(running: DaemonProcess) -> None:
    assert trains(running)
    made = [
        path for path in running.state.rglob("*") if path.name != "training.seed"
    ]  # by the test
    assert made
    assert [path for path in made if path.lstat().st_mode & 0o077 and not path.is_symlink()] == []


def mutated(request: bytes, draw: random.Random) -> bytes:
    content = bytearray(request)
    for _ in range(draw.randint(1, 30)):
        content[draw.randrange(len(content))] = draw.randrange(256)
    return bytes(content)


def header_changed(request: bytes, draw: random.Random) -> bytes:
    """A message of the right form, with a value that nobody would send."""
    message = Message.decode(request, max_bytes=1 << 24)
    where: Any = message.header
    while isinstance(where, dict) and where:
        name = draw.choice(sorted(where))
        if not isinstance(where[name], dict) or draw.random() < 0.3:
            where[name] = draw.choice([None, -1, 10**15, 1e300, "x" * 1000, [[]] * 50, {"a": {}}])
            break
        where = where[name]
    return Message(
        draw.choice(["train", "mask", "unmask"]), message.header, message.arrays
    ).encode()


def frame(content: bytes) -> bytes:
    return len(content).to_bytes(8, "big") + content


def hostile_bytes(request: bytes, draw: random.Random) -> bytes:
    kinds: list[Callable[[], bytes]] = [
        lambda: draw.randbytes(draw.randint(0, 40)),
        lambda: frame(draw.randbytes(draw.randint(0, 5000))),
        lambda: frame(mutated(request, draw)),
        lambda: frame(mutated(request, draw))[: draw.randint(1, len(request))],
        lambda: frame(header_changed(request, draw)),
        lambda: draw.randint(1 << 25, (1 << 64) - 1).to_bytes(8, "big") + b"never",
        lambda: frame((1 << 60).to_bytes(8, "little") + request[8:]),
        lambda: frame(request[:8] + b"[" * (len(request) - 8)),
        lambda: frame(request) + draw.randbytes(100),
    ]
    return draw.choice(kinds)()


def provoke(path: Path, content: bytes, draw: random.Random) -> None:
    """Send and hang up: at once, when all is sent, or after the answer."""
    with closing(socket.socket(socket.AF_UNIX)) as caller:
        caller.settimeout(60)
        caller.connect(str(path))
        try:
            caller.sendall(content)
            if draw.random() < 0.7:
                caller.shutdown(socket.SHUT_WR)
                caller.recv(1 << 16)
        except ConnectionError:
            return  # the daemon hung up first


@pytest.mark.timeout(0)
def test_hostile_messages_neither_end_nor_fill_the_daemon(running: DaemonProcess) -> None:
    draw = random.Random(20)
    request = train_request()
    early_kb = 0
    for number in range(HOSTILE_MESSAGES):
        if number == HOSTILE_MESSAGES // 4:
            early_kb = running.memory_kb()
        if number % 5:
            provoke(running.state / "site.sock", hostile_bytes(request, draw), draw)
        else:
            line = draw.choice([b'{"command": "status"}', b"{" * 999, draw.randbytes(200)])
            provoke(running.state / "control.sock", line + draw.choice([b"\n", b""]), draw)
    assert running.process.poll() is None
    assert trains(running)
    assert running.memory_kb() < early_kb + 40_000
    levels = {event["level"] for event in running.events()}
    assert levels <= {"info", "warning"}, [e for e in running.events() if e["level"] == "error"][:3]


@pytest.mark.slow
def test_a_killed_daemon_starts_again_and_goes_on(tmp_path: Path) -> None:
    site_file = site(tmp_path)
    with daemon(site_file) as first:
        assert trains(first)
        first.kill()
        assert (tmp_path / "state" / "site.sock").exists()
    notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with closing(notified):
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(60)
        manager = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "2000000"}
        with daemon(site_file, **manager) as second:
            assert notified.recv(1000) == b"READY=1\nSTATUS=serving"
            assert notified.recv(1000) == b"WATCHDOG=1\nSTATUS=serving"
            assert trains(second)
            second.process.send_signal(signal.SIGINT)
            assert second.process.wait(60) == 0
            while (told := notified.recv(1000)) != b"STOPPING=1\nSTATUS=stopping":
                assert told == b"WATCHDOG=1\nSTATUS=serving"
        assert not (tmp_path / "state" / "site.sock").exists()


def test_a_daemon_killed_in_a_private_training_has_counted_it(tmp_path: Path) -> None:
    caps = {"epsilon_cap": 8.0, "delta": 1e-5, "ledger": "state/privacy.sqlite"}
    site_file = site(tmp_path, privacy=caps)
    ledger = tmp_path / "state" / "privacy.sqlite"

    def reserved() -> int:
        return len(read_ledger(ledger)) if ledger.exists() else 0

    with daemon(site_file) as first, closing(socket.socket(socket.AF_UNIX)) as relay:
        relay.connect(str(first.state / "site.sock"))
        write_frame(relay, train_request(private=True))
        wait_until(lambda: reserved() == 1)
        first.kill()  # what the training did until now may be nothing, or all of it
    with daemon(site_file) as second:
        assert trains(second, private=True)
        assert reserved() == 2


def test_the_log_has_nothing_of_a_patient(tmp_path: Path) -> None:
    site_file = site(tmp_path)
    (tmp_path / "manifest.csv").write_text(
        "study_id,patient_id,positive,report\nstudy-9,patient-9,nodule,@gone-9.txt\n"
    )
    with daemon(site_file) as process:
        assert not trains(process)
        assert process.end() == 0
        log = process.log.read_text()
    assert "not_ready" in log
    assert "DataError" in log
    assert not [
        secret for secret in ("study-9", "patient-9", "gone-9", "manifest.csv") if secret in log
    ]
