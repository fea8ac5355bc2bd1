"""The relay and its socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import Array, ArrayRecord, Context, Message, Metadata, RecordDict

from fedhash.errors import ProtocolError
from fedhash_client.flower import ENDPOINT_ERROR, app
from fedhash_client.site_socket import LARGEST_FRAME_BYTES, SiteSocket, read_frame, write_frame


def context(**node_config: str) -> Context:
    return Context(
        run_id=1, node_id=7, node_config=dict(node_config), state=RecordDict(), run_config={}
    )


def request(message_type: str, content: RecordDict | None = None) -> Message:
    metadata = Metadata(
        run_id=1,
        message_id="m",
        src_node_id=1,
        dst_node_id=7,
        reply_to_message_id="",
        group_id="train",
        created_at=4e9,
        ttl=5.0,
        message_type=message_type,
    )
    return Message(content=content or RecordDict(), metadata=metadata)


def relay_request(data: bytes) -> Message:
    array = Array("uint8", (len(data),), "fedhash", data)
    return request("query.relay", RecordDict({"message": ArrayRecord({"bytes": array})}))


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        yield server


def serve_once(listener: socket.socket, answer: bytes) -> list[bytes]:
    """Answer one connection with raw bytes; the list receives the frame that was read."""
    received: list[bytes] = []

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            received.append(read_frame(connection))
            connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return received


def frame(content: bytes) -> bytes:
    return len(content).to_bytes(8, "big") + content


def test_relay_carries_bytes_to_the_daemon_and_back(
    listener: socket.socket, tmp_path: Path
) -> None:
    question, answer = os.urandom(3_000_000), os.urandom(2_000_000)
    received = serve_once(listener, frame(answer))
    reply = app(relay_request(question), context(site="a", **{"site-socket": str(tmp_path / "s")}))
    assert received == [question]
    assert reply.content["message"]["bytes"].data == answer


def test_identify_tells_the_name_of_the_node_config() -> None:
    reply = app(request("query.identify"), context(site="a", **{"site-socket": "/nowhere"}))
    assert reply.content["site"]["name"] == "a"


@pytest.mark.parametrize("message", [request("query.identify"), relay_request(b"x")])
def test_node_without_a_site_answers_with_a_typed_error(message: Message) -> None:
    reply = app(message, context(site="a"))
    assert reply.error.code == ENDPOINT_ERROR
    assert "start it with --node-config" in str(reply.error.reason)


def test_settings_of_the_coordinator_do_not_lead_to_a_site() -> None:
    here = context()
    here.run_config = {"site": "a", "site-socket": "/somewhere"}
    assert app(request("query.identify"), here).error.code == ENDPOINT_ERROR


def test_absent_daemon_is_a_typed_error(tmp_path: Path) -> None:
    reply = app(relay_request(b"x"), context(site="a", **{"site-socket": str(tmp_path / "none")}))
    assert reply.error.code == ENDPOINT_ERROR
    assert "check that fedhash-site runs" in str(reply.error.reason)


def test_request_of_another_shape_is_a_typed_error() -> None:
    content = RecordDict({"message": ArrayRecord()})
    reply = app(request("query.relay", content), context(site="a", **{"site-socket": "/nowhere"}))
    assert reply.error.code == ENDPOINT_ERROR
    assert "one array record 'message'" in str(reply.error.reason)


@pytest.mark.parametrize("answer", [b"", b"\0\0", frame(b"whole")[:-1]])
def test_daemon_that_hangs_up_is_an_error(
    listener: socket.socket, tmp_path: Path, answer: bytes
) -> None:
    serve_once(listener, answer)
    with pytest.raises(ProtocolError, match=r"hung up \d bytes before the end of a frame"):
        SiteSocket("a", str(tmp_path / "s")).answer(b"x", timeout_s=5)


def test_silent_daemon_is_an_error(listener: socket.socket, tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="timed out"):
        SiteSocket("a", str(tmp_path / "s")).answer(b"x", timeout_s=0.05)


def test_frame_of_an_absurd_length_is_refused_unread(
    listener: socket.socket, tmp_path: Path
) -> None:
    serve_once(listener, (LARGEST_FRAME_BYTES + 1).to_bytes(8, "big"))
    with pytest.raises(ProtocolError, match="the peer at this socket is not fedhash"):
        SiteSocket("a", str(tmp_path / "s")).answer(b"x", timeout_s=5)


def test_frames_follow_one_another_on_one_connection() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        write_frame(ours, b"first")
        write_frame(ours, b"")
        assert [read_frame(theirs), read_frame(theirs)] == [b"first", b""]


@pytest.mark.parametrize(
    "module",
    ["fedhash_client.flower", "fedhash_server.flower_engine", "fedhash_sim.engines.flower"],
)
def test_import_loads_no_torch_and_switches_flower_reports_off(module: str) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FLWR_")}
    code = (
        f"import sys, {module}; from flwr.supercore.telemetry import FLWR_TELEMETRY_ENABLED; "
        "from flwr.supercore.update_check import FLWR_DISABLE_UPDATE_CHECK as name; import os; "
        "print('torch' in sys.modules, FLWR_TELEMETRY_ENABLED, os.environ[name])"
    )
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "0", "1"]
