"""A SuperNode looks again soon after an answer, and as Flower has it do otherwise."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable

import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse
from flwr.proto.message_pb2 import Message
from flwr.supernode import fleet_http_connection

from fedhash_client import prompt_pulls
from fedhash_client.prompt_pulls import pull_promptly

LAUNCHER = "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"
EMPTY, FULL = PullMessagesResponse(), PullMessagesResponse(messages_list=[Message()])


class SuperLink:
    """Answers pulls with what was put into `waiting`, then with nothing; and is the clock."""

    def __init__(self) -> None:
        self.waiting: deque[PullMessagesResponse | Exception] = deque()
        self.now_s = 1000.0
        self.pulls = 0

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def monotonic(self) -> float:
        return self.now_s

    def answer(self) -> PullMessagesResponse:
        self.pulls += 1
        response = self.waiting.popleft() if self.waiting else EMPTY
        if isinstance(response, Exception):
            raise response
        return response


@pytest.fixture
def superlink(monkeypatch: pytest.MonkeyPatch) -> SuperLink:
    superlink = SuperLink()

    class Client:
        def PullMessages(self, request: PullMessagesRequest) -> PullMessagesResponse:  # noqa: N802
            return superlink.answer()

    monkeypatch.setattr(fleet_http_connection, "FleetHttpClient", Client)
    monkeypatch.setattr(prompt_pulls, "time", superlink)
    monkeypatch.setenv(LAUNCHER, "7")  # comes back at the end
    return superlink


def pull_of_a_new_node() -> Callable[[], PullMessagesResponse]:
    pull_promptly()
    client = fleet_http_connection.FleetHttpClient()  # type: ignore[attr-defined, call-arg]
    return lambda: client.PullMessages(PullMessagesRequest())


def test_idle_node_looks_once(superlink: SuperLink) -> None:
    pull = pull_of_a_new_node()
    assert pull() == EMPTY
    assert pull() == EMPTY
    assert (superlink.pulls, superlink.now_s) == (2, 1000.0)


def test_node_that_has_answered_finds_the_next_message_within_a_quarter_second(
    superlink: SuperLink,
) -> None:
    pull = pull_of_a_new_node()
    superlink.waiting.append(FULL)
    assert pull() == FULL
    superlink.now_s += 3600.0  # so long the site trained
    superlink.waiting.extend([EMPTY] * 5 + [FULL])
    assert pull() == FULL
    assert superlink.now_s == 1000.0 + 3600.0 + 5 * 0.25


def test_a_minute_without_a_message_makes_the_node_idle(superlink: SuperLink) -> None:
    pull = pull_of_a_new_node()
    superlink.waiting.append(FULL)
    assert pull() == FULL
    assert pull() == EMPTY
    assert superlink.now_s == 1060.0
    before = superlink.pulls
    assert pull() == EMPTY
    assert superlink.pulls == before + 1


def test_what_the_connection_raises_reaches_flower(superlink: SuperLink) -> None:
    pull = pull_of_a_new_node()
    superlink.waiting.extend([FULL, EMPTY, ConnectionError("reset")])
    assert pull() == FULL
    with pytest.raises(ConnectionError, match="reset"):
        pull()


def test_launcher_s_interval_is_shortened_unless_it_is_set(
    superlink: SuperLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull_promptly()
    assert os.environ[LAUNCHER] == "7"
    monkeypatch.delenv(LAUNCHER)
    pull_promptly()
    assert float(os.environ[LAUNCHER]) <= 0.25
