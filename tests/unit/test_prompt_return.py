"""A SuperNode takes the place of one that was killed; one that ended in order leaves no trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    DeactivateNodeResponse,
)
from flwr.supernode import fleet_http_connection

from fedhash_client import prompt_return
from fedhash_client.prompt_return import return_promptly

NODE = 17_000_000_000_000_000_001  # they are unsigned and of 64 bits


class SuperLink:
    """Knows one node, as Flower's does, and is the clock."""

    def __init__(self) -> None:
        self.online = False
        self.seen: list[str] = []
        self.fault: int | None = None
        self.client: type = object

    def sleep(self, seconds: float) -> None:
        assert seconds >= 3  # more than the second after which the coordinator looks again
        self.seen.append("away" if not self.online else "away while online")

    def activate(self) -> ActivateNodeResponse:
        self._check(not self.online, "activated")
        self.online = True
        return ActivateNodeResponse(node_id=NODE)

    def deactivate(self, node: int) -> DeactivateNodeResponse:
        self._check(self.online and node == NODE, "deactivated")
        self.online = False
        return DeactivateNodeResponse()

    def _check(self, allowed: bool, what: str) -> None:
        status = self.fault or (200 if allowed else 412)
        self.seen.append(what if status == 200 else str(status))
        if status != 200:
            response = httpx.Response(status, request=httpx.Request("POST", "https://c"))
            response.raise_for_status()


@pytest.fixture
def superlink(monkeypatch: pytest.MonkeyPatch) -> SuperLink:
    superlink = SuperLink()

    class Client:
        def ActivateNode(self, request: ActivateNodeRequest) -> ActivateNodeResponse:  # noqa: N802
            return superlink.activate()

        def DeactivateNode(  # noqa: N802
            self, request: DeactivateNodeRequest
        ) -> DeactivateNodeResponse:
            return superlink.deactivate(request.node_id)

    superlink.client = Client
    monkeypatch.setattr(fleet_http_connection, "FleetHttpClient", Client)  # comes back at the end
    monkeypatch.setattr(prompt_return, "time", superlink)
    return superlink


def new_node(superlink: SuperLink, path: Path) -> tuple[Callable[[], object], Callable[[], object]]:
    """In a process of its own: Flower's class is as it was."""
    fleet_http_connection.FleetHttpClient = superlink.client  # type: ignore[attr-defined, misc]
    return_promptly(path)
    client = fleet_http_connection.FleetHttpClient()  # type: ignore[attr-defined, call-arg]
    return (
        lambda: client.ActivateNode(ActivateNodeRequest()),
        lambda: client.DeactivateNode(DeactivateNodeRequest(node_id=NODE)),
    )


def test_a_node_signs_a_killed_one_off_and_stays_away_for_a_while(
    superlink: SuperLink, tmp_path: Path
) -> None:
    new_node(superlink, tmp_path / "node")[0]()  # and is killed
    activate, deactivate = new_node(superlink, tmp_path / "node")
    activate()
    assert superlink.seen == ["activated", "deactivated", "away", "activated"]
    deactivate()
    assert not (tmp_path / "node").exists()
    new_node(superlink, tmp_path / "node")[0]()
    assert superlink.seen[4:] == ["deactivated", "activated"]


def test_a_killed_node_that_was_missed_already_keeps_the_next_one_away_as_long(
    superlink: SuperLink, tmp_path: Path
) -> None:
    new_node(superlink, tmp_path / "node")[0]()
    superlink.online = False  # its heartbeats stopped long ago
    new_node(superlink, tmp_path / "node")[0]()
    assert superlink.seen == ["activated", "412", "away", "activated"]


def test_a_superlink_that_is_down_is_asked_again(superlink: SuperLink, tmp_path: Path) -> None:
    new_node(superlink, tmp_path / "node")[0]()
    activate, _ = new_node(superlink, tmp_path / "node")
    superlink.fault = 502
    with pytest.raises(httpx.HTTPStatusError):  # by Flower
        activate()
    superlink.fault = None
    activate()
    assert superlink.seen == ["activated", "502", "deactivated", "away", "activated"]


@pytest.mark.parametrize("content", ["", "0\n", "-4\n", "node\n", "1" * 30, "\x00\xff"])
def test_a_file_that_no_node_wrote_is_as_none(
    superlink: SuperLink, tmp_path: Path, content: str
) -> None:
    (tmp_path / "node").write_text(content, encoding="latin-1")
    new_node(superlink, tmp_path / "node")[0]()
    assert superlink.seen == ["activated"]
    assert (tmp_path / "node").read_text() == f"{NODE}\n"
