"""The engine over a Flower Grid, with relays called in process; and the app folder."""

from __future__ import annotations

import itertools
import logging
import re
import weakref
import zipfile
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.cli.build import build_fab_from_disk
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from small_federation import IDENTITIES, outcomes

from fedhash.bundle import BUNDLE_NAMES, check_bundle
from fedhash.errors import ConfigurationError, FedhashError, ProtocolError
from fedhash.rounds.engine import SiteFailure
from fedhash.rounds.messages import Message
from fedhash_client.flower import relay_app
from fedhash_server import flower, flower_engine
from fedhash_server.flower import write_app_folder
from fedhash_server.flower_engine import FlowerEngine
from fedhash_sim.engines.inprocess import InProcessEngine

Node = Callable[[FlowerMessage], FlowerMessage | None]


class Site:
    """A SiteEndpoint that answers with its name and what it was sent."""

    def __init__(self, name: str) -> None:
        self.name = name

    def answer(self, request: bytes, timeout_s: float) -> bytes:
        message = Message.decode(request, max_bytes=1 << 20)
        return Message("answer", {"site": self.name}, message.arrays).encode()


def node_of(endpoint: object) -> Node:
    app = relay_app(lambda context: endpoint)
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
    return lambda message: app(message, context)


def node_that(answers: Callable[[FlowerMessage], FlowerMessage | None], name: str) -> Node:
    """A node that names itself properly and then relays in its own way."""
    identify = node_of(Site(name))
    return lambda message: (
        identify(message) if message.metadata.message_type == "query.identify" else answers(message)
    )


NOT_FOR_THE_ENGINE = "the engine pushes and pulls; it calls no other method of the grid"


class LocalGrid(Grid):
    """Nodes that answer at once, or never where a node returns None."""

    def __init__(self, nodes: dict[int, Node]) -> None:
        self.nodes = nodes
        self.relayed: list[FlowerMessage] = []
        self._replies: dict[str, FlowerMessage] = {}
        self._numbers = itertools.count()

    def set_run(self, run: Run) -> None:
        raise AssertionError(NOT_FOR_THE_ENGINE)

    @property
    def run(self) -> Run:
        raise AssertionError(NOT_FOR_THE_ENGINE)

    def create_message(self, *args: object, **kwargs: object) -> FlowerMessage:
        raise AssertionError(NOT_FOR_THE_ENGINE)

    def send_and_receive(self, *args: object, **kwargs: object) -> Iterable[FlowerMessage]:
        raise AssertionError(NOT_FOR_THE_ENGINE)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[FlowerMessage]) -> Iterable[str]:
        identities = []
        for message in messages:
            identity = f"message-{next(self._numbers)}"
            message.metadata.__dict__["_message_id"] = identity
            if message.metadata.message_type == "query.relay":
                self.relayed.append(message)
            reply = self.nodes[message.metadata.dst_node_id](message)
            if reply is not None:
                self._replies[identity] = reply
            identities.append(identity)
        return identities

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[FlowerMessage]:
        return [self._replies.pop(i) for i in list(message_ids) if i in self._replies]


@pytest.fixture(autouse=True)
def flower_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower makes messages only in a process that has an identity."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def engine_over(nodes: dict[int, Node], roster: str = "ab", **options: object) -> FlowerEngine:
    return FlowerEngine(LocalGrid(nodes), list(roster), **({"join_timeout_s": 0} | options))


def requests(sites: str) -> dict[str, Message]:
    return {site: Message("question", {}, {"x": np.full(3, ord(site), np.int32)}) for site in sites}


def failure_of(node: Node, **options: object) -> SiteFailure:
    """What the engine makes of a misbehaving node "a", while its neighbour is served."""
    engine = engine_over({1: node, 2: node_of(Site("b"))}, **options)
    answers = outcomes(engine.ask("train", requests("ab"), timeout_s=0.05))
    assert isinstance(answers["b"], Message)
    failure = answers["a"]
    assert isinstance(failure, SiteFailure)
    return failure


def test_each_site_gets_its_own_request_and_gives_its_own_answer() -> None:
    engine = engine_over({5: node_of(Site("b")), 3: node_of(Site("a"))})
    answers = outcomes(engine.ask("train", requests("ba"), timeout_s=5))
    assert engine.sites == ("a", "b")
    assert {s: (m.kind, m.header, m.arrays["x"].tolist()) for s, m in answers.items()} == {
        "a": ("answer", {"site": "a"}, [97] * 3),
        "b": ("answer", {"site": "b"}, [98] * 3),
    }


def test_only_asked_sites_are_sent_anything() -> None:
    grid = LocalGrid({1: node_of(Site("a")), 2: node_of(Site("b"))})
    answers = outcomes(
        FlowerEngine(grid, "ab", join_timeout_s=0).ask("train", requests("b"), timeout_s=5)
    )
    assert list(answers) == ["b"]
    assert [m.metadata.dst_node_id for m in grid.relayed] == [2]
    assert grid.relayed[0].metadata.group_id == "train"


def test_silent_site_is_late() -> None:
    assert failure_of(node_that(lambda message: None, "a")) == SiteFailure(
        "late", "no answer within 0.05 s"
    )


@pytest.mark.parametrize(
    ("code", "reason"), [(1001, "no_answer"), (5, "unreachable"), (3, "late"), (2, "crashed")]
)
def test_error_reply_is_a_failure_with_its_reason_in_one_printable_line(
    code: int, reason: str
) -> None:
    node = node_that(
        lambda m: FlowerMessage(Error(code, "x" * 2000 + "\x1b[31mred\n\nboom"), reply_to=m), "a"
    )
    failure = failure_of(node)
    assert failure.reason == reason
    assert failure.detail == "x" * 987 + " [31mred boom"


def test_endpoint_that_fails_is_told_by_the_relay() -> None:
    class Broken(Site):
        def answer(self, request: bytes, timeout_s: float) -> bytes:
            raise ProtocolError("the daemon is away")

    assert failure_of(node_of(Broken("a"))) == SiteFailure("no_answer", "the daemon is away")


def test_bytes_that_are_no_message_are_a_failure() -> None:
    class Noise(Site):
        def answer(self, request: bytes, timeout_s: float) -> bytes:
            return b"noise"

    failure = failure_of(node_of(Noise("a")))
    assert failure.reason == "invalid_message"
    assert "not a whole safetensors container" in failure.detail


def test_reply_above_the_limit_is_a_failure() -> None:
    class Large(Site):
        def answer(self, request: bytes, timeout_s: float) -> bytes:
            return Message("answer", {}, {"x": np.zeros(9999, np.uint8)}).encode()

    failure = failure_of(node_of(Large("a")), max_reply_bytes=5000)
    assert failure.reason == "invalid_message"
    assert "the limit is 5000" in failure.detail


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"message": ConfigRecord({"bytes": b"x"})}),
        RecordDict({"message": ArrayRecord({"other": Array(np.zeros(1))})}),
    ],
)
def test_reply_of_another_shape_is_a_failure(content: RecordDict) -> None:
    failure = failure_of(node_that(lambda m: FlowerMessage(content, reply_to=m), "a"))
    assert failure == SiteFailure(
        "invalid_message", "the reply must hold one array record 'message' with array 'bytes'"
    )


def test_reply_with_neither_content_nor_error_is_a_failure() -> None:
    def empty(message: FlowerMessage) -> FlowerMessage:
        reply = FlowerMessage(RecordDict(), reply_to=message)
        reply.__dict__["_content"] = None
        return reply

    assert "neither content nor error" in failure_of(node_that(empty, "a")).detail


def test_name_that_two_nodes_claim_is_served_by_neither() -> None:
    grid = LocalGrid({n: node_of(Site(s)) for n, s in ((1, "a"), (2, "b"), (3, "a"))})
    engine = FlowerEngine(grid, "ab", join_timeout_s=0)
    answers = outcomes(engine.ask("train", requests("ab"), timeout_s=5))
    assert answers["a"] == SiteFailure(
        "duplicate_name", "2 nodes call themselves 'a'; stop all but the site's own"
    )
    assert isinstance(answers["b"], Message)
    assert engine.sites == ("b",)
    assert [m.metadata.dst_node_id for m in grid.relayed] == [2]


@pytest.mark.parametrize("name", ["mallory", 7, None])
def test_name_outside_the_roster_is_refused(name: object, caplog: pytest.LogCaptureFixture) -> None:
    record = ConfigRecord({} if name is None else {"name": name})
    content = RecordDict({"site": record})
    stranger = lambda m: FlowerMessage(content, reply_to=m)  # noqa: E731
    grid = LocalGrid({1: node_of(Site("a")), 2: stranger})
    engine = FlowerEngine(grid, "a", join_timeout_s=0)
    with caplog.at_level(logging.WARNING):
        assert engine.sites == ("a",)
    assert f"node 2 names itself {name!r}" in caplog.text
    outcomes(engine.ask("train", requests("a"), timeout_s=5))
    assert [m.metadata.dst_node_id for m in grid.relayed] == [1]


def test_node_that_cannot_name_its_site_is_asked_again_later() -> None:
    away = [True]

    def node(message: FlowerMessage) -> FlowerMessage | None:
        if away.pop():
            return FlowerMessage(Error(1001, "daemon away"), reply_to=message)
        return node_of(Site("a"))(message)

    engine = engine_over({1: node}, "a")
    assert engine.sites == ()
    away.append(False)
    assert engine.sites == ("a",)


def test_absent_site_is_unreachable_and_later_found() -> None:
    nodes = {1: node_of(Site("a"))}
    engine = engine_over(nodes)
    answers = outcomes(engine.ask("train", requests("ab"), timeout_s=5))
    assert answers["b"] == SiteFailure("unreachable", "no node of this site is online")
    nodes[2] = node_of(Site("b"))
    assert isinstance(outcomes(engine.ask("train", requests("b"), timeout_s=5))["b"], Message)
    del nodes[1]
    assert engine.sites == ("b",)


def test_sites_are_awaited_until_the_join_deadline() -> None:
    nodes: dict[int, Node] = {}

    def pause(seconds: float) -> None:
        number = len(nodes)
        nodes[number] = node_of(Site("ab"[number]))

    engine = engine_over(nodes, join_timeout_s=60, pause=pause)
    assert engine.sites == ("a", "b")


def test_one_reply_is_in_memory_at_a_time() -> None:
    """All sites have answered before the first poll; each reply is gone when the next is pulled."""
    held: list[weakref.ref[object]] = []

    class Watching(LocalGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[FlowerMessage]:
            assert [each() for each in held] == [None] * len(held)
            replies = list(super().pull_messages(message_ids))
            if any(reply.metadata.message_type == "query.relay" for reply in replies):
                assert len(replies) == 1
                held.extend(weakref.ref(reply.content["message"]["bytes"]) for reply in replies)
            return replies

    grid = Watching({n: node_of(Site(s)) for n, s in enumerate("abcd", 1)})
    for answer in FlowerEngine(grid, "abcd", join_timeout_s=0).ask("t", requests("abcd"), 5):
        assert isinstance(answer.outcome, Message)
        held.append(weakref.ref(answer.outcome.arrays["x"]))
        assert [each() is None for each in held] == [True] * (len(held) - 1) + [False]
        del answer
    assert len(held) == 8


def test_message_that_flower_does_not_take_is_a_failure() -> None:
    class Refusing(LocalGrid):
        def push_messages(self, messages: Iterable[FlowerMessage]) -> Iterable[str | None]:
            messages = list(messages)
            if messages[0].metadata.message_type == "query.relay":
                return [None]  # what flwr.superlink.grid.HttpGrid returns
            return super().push_messages(messages)

    engine = FlowerEngine(Refusing({1: node_of(Site("a"))}), "a", join_timeout_s=0)
    answers = outcomes(engine.ask("train", requests("a"), timeout_s=5))
    assert answers["a"] == SiteFailure("unreachable", "Flower did not accept the message")


def test_pause_may_end_the_run() -> None:
    def pause(seconds: float) -> None:
        raise KeyboardInterrupt

    engine = engine_over({1: node_that(lambda message: None, "a")}, "a", pause=pause)
    with pytest.raises(KeyboardInterrupt):
        outcomes(engine.ask("train", requests("a"), timeout_s=60))


def test_pauses_grow_with_the_time_that_an_exchange_has_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: 50.0 + sum(pauses))
    monkeypatch.setattr(flower_engine, "time", clock)
    engine = engine_over(
        {1: node_that(lambda message: None, "a")}, "a", join_timeout_s=0, pause=pauses.append
    )
    assert outcomes(engine.ask("train", requests("a"), timeout_s=100))["a"] == SiteFailure(
        "late", "no answer within 100 s"
    )
    elapsed = list(itertools.accumulate(pauses, initial=0.0))
    assert elapsed[-1] == pytest.approx(100, abs=1)
    assert pauses == [pytest.approx(min(max(0.02, since / 10), 1.0)) for since in elapsed[:-1]]
    assert len(pauses) < 200


AGREEMENT = """
name: trial
findings: [no_finding, effusion]
modalities: [image]
smallest_cohort: 1
"""
ROUND = """
model: {towers: {image: {name: image_convnet}}}
learning: {learning_rate: 1.0e-3, local_steps: 1}
rounds: 1
aggregation: plain
"""
RUN = "{run_id: trial, sites: [a, b], seed: 1}\n"


def write_configs(
    folder: Path, *, agreement: str = AGREEMENT, rounds: str = ROUND, run: str = RUN
) -> tuple[Path, Path, Path]:
    paths = (folder / "agreement.yaml", folder / "round.yaml", folder / "run.yaml")
    for path, text in zip(paths, (agreement, rounds, run), strict=True):
        path.write_text(text)
    return paths


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # flwr and pathspec
def test_bundle_holds_three_settings_files_and_no_code(tmp_path: Path) -> None:
    app_folder = tmp_path / "app"
    write_app_folder(app_folder, *write_configs(tmp_path))
    (app_folder / "configs" / "stray.yaml").write_text("a: 1")
    (app_folder / "fedhash.py").write_text("raise SystemExit")
    bundle = build_fab_from_disk(app_folder)
    with zipfile.ZipFile(BytesIO(bundle)) as archive:
        assert set(archive.namelist()) == BUNDLE_NAMES
        assert archive.read("configs/run.yaml").decode() == RUN
    assert len(bundle) < 4000
    check_bundle(bundle)  # a site takes it


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": "{run_id: trial, sites: [a], sed: 1}"}, "run.yaml:1: unknown key"),
        ({"run": "{run_id: ../trial, sites: [a], seed: 1}"}, '"run_id" must match pattern'),
        ({"run": "{run_id: trial, sites: [a, b, a], seed: 1}"}, "more than once: a; keep one"),
        (
            {"agreement": AGREEMENT.replace("smallest_cohort: 1", "smallest_cohort: 3")},
            "run.yaml:1: sites: 2 sites are fewer than the agreement's smallest_cohort, 3",
        ),
        ({"rounds": ROUND.replace("local_steps: 1", "local_steps: 5000")}, "local_steps is 5000"),
        (
            {
                "agreement": AGREEMENT.replace("cohort: 1", "cohort: 3"),
                "rounds": ROUND.replace("plain", "secure"),
                "run": RUN.replace("[a, b]", "[a, b, c]"),
            },
            "agreement.yaml:2: sites has no identity of a, b, c; an agreement that names its sites",
        ),
        (
            {"agreement": AGREEMENT + f"\nsites: {{a: {IDENTITIES['site-0'].public_hex}}}\n"},
            "sites has no identity of b; an agreement that names its sites",
        ),
        ({"rounds": ROUND.replace("plain", "secure")}, "aggregation is secure, and the agreement"),
        ({"rounds": ROUND.replace("image_convnet", "image_convent")}, 'mean "image_convnet"?'),
    ],
)
def test_app_folder_of_files_that_cannot_train_is_not_written(
    tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    paths = write_configs(tmp_path, **changes)
    with pytest.raises(FedhashError, match=re.escape(message)):
        write_app_folder(tmp_path / "app", *paths)
    assert not (tmp_path / "app").exists()


@pytest.mark.parametrize("name", ["notes.txt", "pyproject.toml", "configs/round.yaml"])
def test_folder_of_somebody_else_is_left_as_it_is(tmp_path: Path, name: str) -> None:
    theirs = tmp_path / "app" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    with pytest.raises(ConfigurationError, match=r"neither empty nor an app .* name a new"):
        write_app_folder(tmp_path / "app", *write_configs(tmp_path))
    assert [path for path in (tmp_path / "app").rglob("*") if path.is_file()] == [theirs]
    assert theirs.read_text() == "mine"


def test_app_folder_is_replaced_by_the_next_app(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    write_app_folder(tmp_path / "app", *write_configs(tmp_path))
    paths = write_configs(tmp_path, run=RUN.replace("trial", "second"))
    write_app_folder(tmp_path / "app", *paths)
    assert "second" in (tmp_path / "app" / "configs" / "run.yaml").read_text()


@pytest.mark.parametrize(
    ("back_at_s", "in_a_row", "paused_s"), [(0, 1, 10), (25, 1, 25), (0, 2, 20), (9999, 2, 120)]
)
def test_after_a_failed_round_a_site_that_is_away_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, back_at_s: int, in_a_row: int, paused_s: int
) -> None:
    class Clock:
        now_s = 0.0

        def sleep(self, seconds: float) -> None:
            self.now_s += seconds

        def monotonic(self) -> float:
            return self.now_s

    class SitesOfTheClock(InProcessEngine):
        @property
        def sites(self) -> tuple[str, ...]:
            return ("a", "b") if clock.now_s >= back_at_s else ("a",)

    clock = Clock()
    monkeypatch.setattr(flower, "time", clock)
    flower._await_sites(SitesOfTheClock([]), ("a", "b"), in_a_row)
    assert clock.now_s == paused_s
