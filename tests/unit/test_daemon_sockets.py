"""The daemon's two sockets against callers of every kind: real sockets, made-up answers."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from daemon_process import wait_until

from fedhash.errors import ConfigurationError, ProtocolError, QueryError
from fedhash.rounds.messages import Message
from fedhash.rounds.training_messages import Refusal
from fedhash_client.daemon.control import ControlSocket, ask_daemon
from fedhash_client.daemon.relay_socket import relay_socket
from fedhash_client.daemon.unix_server import UnixServer
from fedhash_client.site_socket import SiteSocket, write_frame


class Echo:
    """Answers with the frame; what to do meanwhile is up to the test."""

    max_frame_bytes = 32 << 20

    def __init__(self) -> None:
        self.during: Callable[[Callable[[], bool]], None] = lambda _: None

    def answer(self, frame: bytes, still_wanted: Callable[[], bool]) -> bytes:
        self.during(still_wanted)
        return frame


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def relay(tmp_path: Path, echo: Echo) -> Iterator[UnixServer]:
    server = relay_socket(tmp_path / "s", echo, receive_timeout_s=5)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlSocket]:
    server = ControlSocket(tmp_path / "c", receive_timeout_s=5)
    server.start()
    yield server
    server.stop()


def connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(20)
    connection.connect(str(path))
    return connection


def trickle(connection: socket.socket, part: bytes, pause_s: float = 0) -> None:
    """Send the part again and again, until the other side hangs up."""
    for _ in range(100_000):
        try:
            connection.sendall(part)
        except ConnectionError:
            return
        threading.Event().wait(pause_s)
    pytest.fail("the other side took everything")


def test_frames_of_many_callers_are_answered(relay: UnixServer, tmp_path: Path) -> None:
    contents = [os.urandom(size) for size in (0, 1, 70_000, 2 << 20)] * 3
    answers: list[bool] = []

    def ask(content: bytes) -> None:
        answers.append(SiteSocket("a", str(tmp_path / "s")).answer(content, 60) == content)

    callers = [threading.Thread(target=ask, args=(content,)) for content in contents]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert answers == [True] * len(contents)


def test_the_socket_is_for_its_owner_alone(relay: UnixServer, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600


def test_a_socket_that_a_killed_daemon_left_is_replaced(tmp_path: Path, echo: Echo) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as left:
        left.bind(str(tmp_path / "s"))
    server = relay_socket(tmp_path / "s", echo)
    server.start()
    assert SiteSocket("a", str(tmp_path / "s")).answer(b"x", 5) == b"x"
    server.stop()
    assert not (tmp_path / "s").exists()


def test_a_file_in_the_way_is_not_removed(tmp_path: Path, echo: Echo) -> None:
    (tmp_path / "s").write_text("precious")
    with pytest.raises(ConfigurationError, match="move the file away"):
        relay_socket(tmp_path / "s", echo).start()
    assert (tmp_path / "s").read_text() == "precious"


def test_a_path_that_is_too_long_is_told_with_the_remedy(tmp_path: Path, echo: Echo) -> None:
    with pytest.raises(ConfigurationError, match="a shorter name"):
        relay_socket(tmp_path / ("s" * 108), echo).start()


def test_a_frame_above_the_limit_has_a_typed_answer(relay: UnixServer, tmp_path: Path) -> None:
    content = bytes(Echo.max_frame_bytes + 1)
    reply = SiteSocket("a", str(tmp_path / "s")).answer(content, 20)
    refusal = Refusal.from_message(Message.decode(reply, max_bytes=10_000))
    assert (refusal.reason, "largest_model_parameters" in refusal.detail) == ("too_large", True)


def test_an_announced_length_reserves_no_memory(tmp_path: Path) -> None:
    large = Echo()
    large.max_frame_bytes = 1 << 34
    server = relay_socket(tmp_path / "s", large, receive_timeout_s=5)
    server.start()
    tracemalloc.start()
    try:
        with connected(tmp_path / "s") as caller:
            caller.sendall((1 << 34).to_bytes(8, "big") + b"only this")
            caller.shutdown(socket.SHUT_WR)
            assert caller.recv(1) == b""
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
        server.stop()


def test_frames_on_their_way_share_a_bounded_room(relay: UnixServer, tmp_path: Path) -> None:
    most = Echo.max_frame_bytes
    callers = [connected(tmp_path / "s") for _ in range(3)]
    try:
        for caller in callers:
            caller.sendall(most.to_bytes(8, "big"))
        for caller in callers[:2]:
            caller.sendall(bytes(most - 1))
        trickle(callers[2], bytes(1000))
        for caller in callers[:2]:
            caller.sendall(b"!")
            assert caller.recv(8) == most.to_bytes(8, "big")
    finally:
        for caller in callers:
            caller.close()
    wait_until(lambda: relay.status()["dropped"] == 3)  # the two did not take all of the answer
    assert SiteSocket("a", str(tmp_path / "s")).answer(b"room again", 20) == b"room again"


def test_a_caller_that_trickles_is_dropped_in_time(tmp_path: Path, echo: Echo) -> None:
    server = relay_socket(tmp_path / "s", echo, receive_timeout_s=0.3)
    server.start()
    with connected(tmp_path / "s") as slow:
        slow.sendall((1 << 20).to_bytes(8, "big"))
        trickle(slow, b".", pause_s=0.02)
    wait_until(lambda: server.status()["dropped"] == 1)
    server.stop()


def test_callers_that_say_nothing_do_not_keep_others_out_for_ever(
    tmp_path: Path, echo: Echo
) -> None:
    server = relay_socket(tmp_path / "s", echo, receive_timeout_s=0.3)
    server.start()
    silent = [connected(tmp_path / "s") for _ in range(12)]
    assert SiteSocket("a", str(tmp_path / "s")).answer(b"x", 20) == b"x"
    for caller in silent:
        caller.close()
    server.stop()


def test_a_caller_that_hangs_up_is_noticed_while_its_answer_is_made(
    relay: UnixServer, echo: Echo, tmp_path: Path
) -> None:
    entered, gone, seen = threading.Event(), threading.Event(), list[bool]()

    def during(still_wanted: Callable[[], bool]) -> None:
        seen.append(still_wanted())
        entered.set()
        assert gone.wait(20)
        seen.append(still_wanted())

    echo.during = during
    with connected(tmp_path / "s") as caller:
        write_frame(caller, b"x")
        assert entered.wait(20)
    gone.set()
    wait_until(lambda: len(seen) == 2)
    assert seen == [True, False]


def test_a_mistake_of_ours_costs_one_connection(
    relay: UnixServer, echo: Echo, tmp_path: Path
) -> None:
    def mistake(still_wanted: Callable[[], bool]) -> None:
        raise KeyError("patient-7")

    echo.during = mistake
    for _ in range(10):  # more than there are connections at once
        with pytest.raises(ProtocolError, match="hung up"):
            SiteSocket("a", str(tmp_path / "s")).answer(b"x", 20)
    echo.during = lambda _: None
    assert SiteSocket("a", str(tmp_path / "s")).answer(b"x", 20) == b"x"


def test_a_command_is_answered(control: ControlSocket, tmp_path: Path) -> None:
    control.register("double", lambda arguments: {"twice": 2 * arguments["number"]})
    assert ask_daemon(tmp_path / "c", "double", number=4) == {"twice": 8}


def test_an_error_of_a_command_is_told(control: ControlSocket, tmp_path: Path) -> None:
    def fail(arguments: Any) -> None:
        raise QueryError("k is above the agreement's largest_k")

    control.register("fail", fail)
    with pytest.raises(ProtocolError, match="above the agreement's"):
        ask_daemon(tmp_path / "c", "fail")


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
        b'{"command": ["status"]}\n',
        b'{"command": "no such"}\n',
        b'"status"\n',
        b"9" * 10_000 + b"\n",
    ],
)
def test_what_is_no_request_has_an_answer_that_says_so(
    control: ControlSocket, tmp_path: Path, line: bytes
) -> None:
    with connected(tmp_path / "c") as caller:
        caller.sendall(line)
        answer = json.loads(caller.makefile().readline())
    assert "error" in answer


def test_a_line_without_an_end_is_dropped(control: ControlSocket, tmp_path: Path) -> None:
    with connected(tmp_path / "c") as caller:
        trickle(caller, b"a" * 10_000)
    wait_until(lambda: control.status()["dropped"] == 1)


def test_a_daemon_that_is_busy_is_not_said_to_be_away(
    control: ControlSocket, tmp_path: Path
) -> None:
    go_on = threading.Event()
    control.register("encode", lambda _: go_on.wait(60))
    with pytest.raises(ProtocolError, match=r"'encode' within 0\.2 s; it may be busy"):
        ask_daemon(tmp_path / "c", "encode", timeout_s=0.2)
    go_on.set()
    assert ask_daemon(tmp_path / "c", "encode") is True


def test_where_no_daemon_is_the_remedy_is_told(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="fedhash-site run"):
        ask_daemon(tmp_path / "none", "status")
