"""The router over real sockets with mutual TLS: sites, askers, strangers, kills."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from fedhash.audit_log import AuditLog, read_audit_log
from fedhash.errors import ConfigurationError, ProtocolError, RefusedError, StorageError
from fedhash.index import SiteSearcher
from fedhash.index.answering import QueryDesk
from fedhash.search import Hit, Query, merge
from fedhash.search.answers import Found, Gathered, Merged, Refusal
from fedhash.search.policy import QueryPolicy
from fedhash.search.wire.answers import (
    Answer,
    decode_reply,
    encode_answer,
    encode_hits,
    encode_holds,
    encode_reply,
    encode_to_site,
    read_from_site,
    read_to_site,
)
from fedhash.search.wire.methods import ASK, ATTACH, SERVICE
from fedhash.search.wire.queries import SignedQuery, decode_signed
from fedhash_client.federated_search import RouterClient
from fedhash_client.query_stream import QueryStream
from fedhash_client.router_channel import open_channel
from fedhash_server import query_service
from fedhash_server import router as router_module
from fedhash_server.ports import serves_health
from tests.attached_site import HELD, LIMITS
from tests.consortium_certificates import Consortium
from tests.router_network import Place, RouterThread
from tests.search_consortium import (
    RELEASE,
    SITES,
    archive,
    asked,
    brute_force,
    handle,
    identity,
    query,
)

HOSTILE_MESSAGES = int(os.environ.get("FEDHASH_HOSTILE_MESSAGES", "200"))


def until(true: Callable[[], bool], what: str) -> None:
    """Wait for something that another thread does."""
    for _ in range(2400):
        if true():
            return
        time.sleep(0.05)
    pytest.fail(f"not within 120 s: {what}")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("consortium"))


@pytest.fixture
def router(place: Place) -> Iterator[RouterThread]:
    with RouterThread(place.folder) as running:
        yield running


def attached(router: RouterThread) -> list[str]:
    return [each.site for each in router.server.queries.attached() if each.release]


@pytest.fixture
def serve(place: Place, tmp_path: Path) -> Iterator[Callable[..., QueryStream]]:
    """Attach sites with archives of their own."""
    with ExitStack() as stack:

        def start(site: str, port: int) -> QueryStream:
            entries = [(f"p{n}", code, {}) for n, code in enumerate(HELD[site])]
            index = stack.enter_context(archive(tmp_path, site, entries))
            log = stack.enter_context(AuditLog(tmp_path / f"{site}.jsonl"))
            policy = QueryPolicy(place.agreement, LIMITS, started_ms=0)
            searcher = SiteSearcher(site, index, place.agreement)
            stream = QueryStream(
                place.network(site, port),
                QueryDesk(policy, log.append).answer,
                lambda: searcher,
                first_pause_s=0.05,
            )
            stream.start()
            stack.callback(stream.stop)
            return stream

        yield start


def ask(place: Place, port: int, wanted: Query, site: str = "hospital-a", **how: float) -> Merged:
    with RouterClient(site, place.agreement, place.network(site, port)) as client:
        return client.search(wanted, purpose="care", **how)


def expected(sites: list[str], wanted: Query) -> list[Hit]:
    return merge([brute_force(site, HELD[site], wanted) for site in sites], wanted.k)


def test_three_sites_answer_like_one_index_and_come_back(
    place: Place, serve: Callable[..., QueryStream]
) -> None:
    with RouterThread(place.folder) as router:
        port = router.port
        streams = {site: serve(site, port) for site in SITES}
        until(lambda: attached(router) == list(SITES), "all sites are attached")
        for wanted in (query(k=4), query(radius=1), query(code=b"\xff\xff", k=20)):
            merged = ask(place, port, wanted)
            assert list(merged.hits) == expected(list(SITES), wanted)
            assert merged.missing == ()
        streams["hospital-b"].stop()
        until(lambda: "hospital-b" not in attached(router), "hospital-b is detached")
        merged = ask(place, port, query())
        assert list(merged.hits) == expected(["hospital-a", "hospital-c"], query())
        assert [(s.site, s.outcome) for s in merged.missing] == [("hospital-b", "not_attached")]
        page = f"http://127.0.0.1:{router.server.health.port}"
        with urllib.request.urlopen(f"{page}/metrics") as response:  # noqa: S310 - loopback
            text = response.read().decode()
        assert 'fedhash_router_queries_total{outcome="partial"} 1.0' in text
        with urllib.request.urlopen(f"{page}/health") as response:  # noqa: S310 - loopback
            assert b'"sites": ["hospital-a", "hospital-c"]' in response.read()
        with pytest.raises(OSError, match="404"):
            urllib.request.urlopen(f"{page}/secrets")  # noqa: S310 - loopback
    until(lambda: not streams["hospital-a"].status()["attached"], "the stream is broken")
    assert streams["hospital-a"].status()["healthy"]
    with pytest.raises(ProtocolError, match="check that the router runs"):
        ask(place, port, query())
    with RouterThread(place.folder, port) as router:
        until(lambda: len(attached(router)) == 2, "the sites are back")
        assert list(ask(place, port, query()).hits) == expected(
            ["hospital-a", "hospital-c"], query()
        )


def test_a_router_whose_loop_hangs_does_not_say_that_it_serves(
    router: RouterThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedhash_server.router._LOOK_S", 0.2)
    port, go_on = router.server.health.port, threading.Event()
    router._loop.call_soon_threadsafe(go_on.wait, 60)
    assert not serves_health(port)
    go_on.set()
    until(lambda: serves_health(port), "the loop goes on")


def test_a_requester_that_the_router_refuses_is_told_why(
    place: Place, router: RouterThread
) -> None:
    with RouterClient(
        "hospital-b", place.agreement, place.network("hospital-b", router.port)
    ) as client:
        with pytest.raises(RefusedError, match="does not let 'hospital-b'") as refused:
            client.search(query(), purpose="research")
        assert refused.value.reason == "purpose_not_allowed"
    of_another = place.network("hospital-a", router.port).model_copy(
        update={"identity": place.path / "hospital-b" / "identity.pem"}
    )
    with (
        RouterClient("hospital-b", place.agreement, of_another) as client,
        pytest.raises(RefusedError, match="the certificate of 'hospital-a'"),
    ):
        client.search(query(), purpose="care")


def test_a_silent_site_is_late_and_a_caller_that_leaves_ends_its_query(
    place: Place, router: RouterThread, serve: Callable[..., QueryStream]
) -> None:
    serve("hospital-a", router.port)
    with open_channel(place.network("hospital-b", router.port)) as channel:
        go_on = threading.Event()

        def messages() -> Iterator[bytes]:
            yield encode_holds(RELEASE)
            go_on.wait(30)

        silent = channel.stream_stream(f"/{SERVICE}/{ATTACH}")(messages())
        until(lambda: len(attached(router)) == 2, "both are attached")
        merged = ask(place, router.port, query(), timeout_s=0.5)
        assert list(merged.hits) == expected(["hospital-a"], query())
        assert {s.site: s.outcome for s in merged.missing}["hospital-b"] == "late"
        leaving = channel.unary_unary(f"/{SERVICE}/{ASK}").future(
            asked("hospital-b", place.agreement, now_ms=time.time_ns() // 1_000_000)
        )
        until(lambda: router.server.queries.under_way == 1, "the query is under way")
        leaving.cancel()
        until(lambda: router.server.queries.under_way == 0, "the query has ended")
        silent.cancel()
        go_on.set()


class Gone:
    """The context of a call whose site hung up before the router said anything."""

    def __init__(self, certificate: bytes) -> None:
        self._certificate = certificate

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"x509_pem_cert": [self._certificate]}

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    async def send_initial_metadata(self, _: object) -> None:
        raise asyncio.CancelledError


def test_a_site_that_hangs_up_at_once_leaves_nothing(place: Place, router: RouterThread) -> None:
    queries = router.server.queries
    certificate = place.network("hospital-b", router.port).certificate.read_bytes()
    with pytest.raises(CancelledError):
        router.call(queries._attach, None, Gone(certificate))
    assert queries.attached() == ()
    assert queries._attachments == {}


def test_a_site_that_attaches_in_a_loop_is_stopped_and_fills_no_log(
    place: Place,
    router: RouterThread,
    serve: Callable[..., QueryStream],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    now_ms = [time.time_ns() // 1_000_000]
    monkeypatch.setattr(query_service, "_now_ms", lambda: now_ms[0])
    caplog.set_level(logging.INFO)
    serve("hospital-a", router.port)
    until(lambda: attached(router) == ["hospital-a"], "it is attached")

    def attach(channel: grpc.Channel) -> grpc.StatusCode:
        """How the stream ends."""
        stream = channel.stream_stream(f"/{SERVICE}/{ATTACH}")(iter([encode_holds(None)]))
        stream.initial_metadata()
        stream.cancel()
        return stream.code()

    with open_channel(place.network("hospital-b", router.port)) as channel:
        for minute in range(10):
            codes = [attach(channel) for _ in range(30)]
            assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 10
            assert router.server.queries.attachments["hospital-b"] == 20 * (minute + 1)
            now_ms[0] += 60_000
        lines = [each for each in caplog.messages if each.startswith("hospital-b is")]
        assert len(lines) <= 60 + 10, "an hour's, and what came back in ten minutes"
        assert attach(channel) is not grpc.StatusCode.RESOURCE_EXHAUSTED, "whoever waits may come"
    assert router.server.queries.attachments["hospital-a"] == 1
    assert attached(router) == ["hospital-a"]


def test_connections_beyond_the_bound_are_closed_before_their_handshake(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, few = "grpc.max_allowed_incoming_connections", 8
    options = [(key, few if key == name else value) for key, value in router_module._OPTIONS]
    assert (name, few) in options
    monkeypatch.setattr(router_module, "_OPTIONS", options)
    with RouterThread(place.folder) as router, ExitStack() as stack:
        idle = [socket.create_connection(("127.0.0.1", router.port)) for _ in range(4 * few)]
        for each in idle:
            stack.enter_context(each)
            each.settimeout(0.2)

        def is_closed(connection: socket.socket) -> bool:
            try:
                return connection.recv(1) == b""
            except ConnectionResetError:
                return True
            except TimeoutError:
                return False

        until(lambda: sum(map(is_closed, idle)) >= 3 * few, "all but the first are closed")
        for each in idle:
            each.close()
        assert ask(place, router.port, query()).hits == ()


def test_a_site_that_lies_costs_its_own_answers(
    place: Place, router: RouterThread, serve: Callable[..., QueryStream]
) -> None:
    serve("hospital-a", router.port)
    with open_channel(place.network("hospital-b", router.port)) as channel:
        outgoing: list[bytes] = [encode_holds(RELEASE)]
        more = threading.Semaphore(1)

        def messages() -> Iterator[bytes]:
            while more.acquire(timeout=30) and outgoing:
                yield outgoing.pop(0)

        stream = channel.stream_stream(f"/{SERVICE}/{ATTACH}")(messages())
        until(lambda: len(attached(router)) == 2, "both are attached")

        def lie() -> None:
            number, _ = read_to_site(next(stream))
            far = Hit("hospital-b", handle("x", 1), 3, 999)
            outgoing.extend([encode_answer(77, Found(())), encode_answer(number, Found((far,)))])
            more.release(2)

        liar = threading.Thread(target=lie)
        liar.start()
        merged = ask(place, router.port, query())
        liar.join()
        assert list(merged.hits) == expected(["hospital-a"], query())
        assert {s.site: s.outcome for s in merged.missing}["hospital-b"] == "invalid"
        (_, hostile) = router.server.queries.attached()
        assert (hostile.invalid_answers, hostile.strange_answers) == (1, 1)
        outgoing.append(b"\xff\xff")
        more.release()
        with pytest.raises(grpc.RpcError) as ended:
            next(stream)
        assert ended.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        more.release()
    assert list(ask(place, router.port, query()).hits) == expected(["hospital-a"], query())


def add_a_hit(found: Found) -> Found:
    return replace(found, hits=(*found.hits, Hit("hospital-b", handle("x", 1), 16, 0)))


def leave_a_hit_out(found: Found) -> Found:
    return replace(found, hits=found.hits[:-1])


def change_a_handle(found: Found) -> Found:
    return replace(found, hits=(*found.hits[:-1], replace(found.hits[-1], handle="ab" * 16)))


def cut_the_radius(found: Found) -> Found:
    return replace(found, cut_to_bits=16)


def sign_with_another_key(found: Found) -> Found:
    return replace(found, signature=identity("hospital-a").sign(encode_hits(found)))


class Answered:
    """What a site answered to the first query, given for each later one."""

    def __init__(self) -> None:
        self.first: Found | None = None

    def __call__(self, found: Found) -> Found:
        self.first = self.first or found
        return self.first


@pytest.mark.parametrize(
    "altered",
    [
        add_a_hit,
        leave_a_hit_out,
        change_a_handle,
        cut_the_radius,
        sign_with_another_key,
        Answered(),
    ],
    ids=lambda each: getattr(each, "__name__", "an_earlier_answer"),
)
def test_a_router_that_alters_an_answer_is_found_by_the_asker(
    place: Place,
    router: RouterThread,
    serve: Callable[..., QueryStream],
    monkeypatch: pytest.MonkeyPatch,
    altered: Callable[[Found], Found],
) -> None:
    def lying(content: Gathered | Refusal) -> bytes:
        assert isinstance(content, Gathered)
        site = "hospital-b"
        return encode_reply(
            replace(content, found={**content.found, site: altered(content.found[site])})
        )

    for site in SITES[:2]:
        serve(site, router.port)
    until(lambda: len(attached(router)) == 2, "both are attached")
    assert list(ask(place, router.port, query()).hits) == expected(list(SITES[:2]), query())
    monkeypatch.setattr(query_service, "encode_reply", lying)
    if isinstance(altered, Answered):
        ask(place, router.port, query())  # is remembered, and true
    merged = ask(place, router.port, query())
    assert list(merged.hits) == expected(["hospital-a"], query()), "the other counts"
    assert [(each.site, each.outcome, each.reason) for each in merged.missing] == [
        ("hospital-b", "invalid", "bad_signature"),
        ("hospital-c", "not_attached", ""),
    ]


def test_a_site_with_a_replaced_certificate_is_detached(
    place: Place, serve: Callable[..., QueryStream]
) -> None:
    with RouterThread(place.folder) as router:
        stream = serve("hospital-c", router.port)
        until(lambda: attached(router) == ["hospital-c"], "it is attached")
        kept = (place.path / "hospital-c" / "site.pem").read_bytes()
        place.enrol("hospital-c")
        (place.path / "hospital-c" / "tls.key").rename(place.path / "hospital-c" / "new.key")
        until(lambda: attached(router) == [], "it is detached")
        (place.path / "hospital-c" / "new.key").rename(place.path / "hospital-c" / "tls.key")
        assert kept != (place.path / "hospital-c" / "site.pem").read_bytes()
        until(lambda: attached(router) == ["hospital-c"], "it is back with the new one")
        assert stream.status()["connections"] >= 2


def strangers(place: Place, folder: Path) -> dict[str, tuple[bytes | None, bytes | None]]:
    """Keys and certificates of those who may not come."""
    authority = place.folder.authority()
    foreign = Consortium(folder).site("hospital-a")
    early = datetime.now(UTC) - timedelta(days=9)
    return {
        "none": (None, None),
        "foreign authority": (foreign.key.read_bytes(), foreign.certificate.read_bytes()),
        "expired": authority.issue("site", "hospital-a", days=1, now=early),
        "not enrolled": authority.issue("site", "hospital-z"),
        "not the enrolled one": authority.issue("site", "hospital-a"),
        "a server": authority.issue("gateway", "x", hosts=["localhost"]),
        "coordinator attaching": authority.issue("coordinator", "c"),
    }


@pytest.mark.parametrize("method", [ASK, ATTACH])
def test_strangers_get_nothing(
    place: Place, router: RouterThread, tmp_path: Path, method: str
) -> None:
    for who, (key, certificate) in strangers(place, tmp_path).items():
        if who == "coordinator attaching" and method == ASK:
            continue
        credentials = grpc.ssl_channel_credentials(place.folder.ca.read_bytes(), key, certificate)
        target = f"localhost:{router.port}"
        options = [("grpc.use_local_subchannel_pool", 1)]
        data = asked() if method == ASK else encode_holds(RELEASE)
        with grpc.secure_channel(target, credentials, options) as channel:
            path = f"/{SERVICE}/{method}"
            call = channel.stream_stream(path)(iter([data]), timeout=10)
            with pytest.raises(grpc.RpcError) as refused:
                next(call)
        code = refused.value.code()
        assert code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.PERMISSION_DENIED}, who
        handshake = who in {"none", "foreign authority", "expired"}
        assert (code is grpc.StatusCode.UNAVAILABLE) >= handshake, who
    assert router.server.queries.attached() == ()


def test_plain_text_gets_nothing(router: RouterThread) -> None:
    with (
        grpc.insecure_channel(f"localhost:{router.port}") as channel,
        pytest.raises(grpc.RpcError) as refused,
    ):
        channel.unary_unary(f"/{SERVICE}/{ASK}")(asked(), timeout=5)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_coordinator_s_own_certificate_may_ask(place: Place, router: RouterThread) -> None:
    key, certificate = place.folder.authority().issue("coordinator", "search")
    credentials = grpc.ssl_channel_credentials(place.folder.ca.read_bytes(), key, certificate)
    data = asked(
        "coordinator", place.agreement, purpose="research", now_ms=time.time_ns() // 1_000_000
    )
    with grpc.secure_channel(f"localhost:{router.port}", credentials) as channel:
        merged = decode_reply(channel.unary_unary(f"/{SERVICE}/{ASK}")(data, timeout=10))
    assert isinstance(merged, Gathered)
    assert {each.outcome for each in merged.sites} == {"not_attached"}


def test_a_port_that_is_taken_is_told(place: Place, router: RouterThread) -> None:
    with (
        pytest.raises(StorageError, match="choose another"),
        RouterThread(place.folder, router.port),
    ):
        pass


def test_a_key_that_others_can_read_is_refused_at_the_start(place: Place, tmp_path: Path) -> None:
    network = place.network("hospital-a", 1)
    key = tmp_path / "tls.key"
    key.write_bytes(network.key.read_bytes())
    key.chmod(0o644)
    stream = QueryStream(
        network.model_copy(update={"key": key}), lambda *_: Found(()), lambda: None
    )
    with pytest.raises(ConfigurationError, match="0644"):
        stream.start()


REASONS = {"malformed", "bad_signature", "other_agreement", "unknown_requester"}


def hostile(rng: random.Random, whole: list[bytes]) -> bytes:
    """Noise, or a good message with a few bytes changed."""
    if rng.random() < 0.3:
        return rng.randbytes(rng.randrange(300))
    message = bytearray(rng.choice(whole))
    for _ in range(rng.randrange(1, 5)):
        message[rng.randrange(len(message))] = rng.randrange(256)
    changed = bytes(message[: rng.randrange(1, 2 * len(message))])
    return b"\xff" if changed in whole else changed


def test_hostile_messages_over_the_network(
    place: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_service, "_STREAMS_A_MINUTE", 10_000_000)
    """Members that send anything: each gets a typed refusal or loses its stream; others go on."""
    caplog.set_level(logging.ERROR, "fedhash_server")  # pytest would keep each line in memory
    rng = random.Random(HOSTILE_MESSAGES)
    now_ms = time.time_ns() // 1_000_000
    queries = [asked("hospital-b", place.agreement, now_ms=now_ms) for _ in range(9)]
    answers = [
        encode_holds(RELEASE),
        encode_answer(1, Found((Hit("b", handle("b", 1), 3, 1),))),
        encode_answer(2, Refusal("late", "too late")),
    ]
    with (
        RouterThread(place.folder, queries_per_minute=10_000_000) as router,
        open_channel(place.network("hospital-b", router.port)) as channel,
        RouterClient(
            "hospital-a", place.agreement, place.network("hospital-a", router.port)
        ) as honest,
    ):
        call = channel.unary_unary(f"/{SERVICE}/{ASK}")
        attach = channel.stream_stream(f"/{SERVICE}/{ATTACH}")
        before = memory_bytes()
        for number in range(HOSTILE_MESSAGES):
            if number % 4:
                reply = decode_reply(call(hostile(rng, queries), timeout=10))
                assert isinstance(reply, Refusal), "no change of a signed query is one"
                assert reply.reason in REASONS
            else:
                stream = attach(iter([hostile(rng, answers), b"\xff"]), timeout=10)
                with pytest.raises(grpc.RpcError) as ended:
                    next(stream)
                assert ended.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert memory_bytes() - before < 64 << 20
        assert len(honest.search(query(), purpose="care").sites) == 3
        until(lambda: router.server.queries.attached() == (), "no stream is left")
        assert router.server.queries.under_way == 0


class HostileRouter(grpc.GenericRpcHandler):
    """Sends each site hostile messages until its stream has taken one that ends it."""

    def __init__(self, messages: list[bytes]) -> None:
        self.messages = messages
        self.refused = 0

    def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return grpc.stream_stream_rpc_method_handler(self.attach)

    def attach(self, requests: Iterator[bytes], context: object) -> Iterator[bytes]:
        next(requests)
        while self.messages:
            yield self.messages.pop()
            answer = next(requests, None)
            if answer is None:
                return
            message = read_from_site(answer, "x")
            assert isinstance(message, Answer)
            assert isinstance(message.content, Refusal), "nothing of a forged query is answered"
            self.refused += 1
        threading.Event().wait(1)


def test_a_site_takes_hostile_messages_of_a_router(
    place: Place, serve: Callable[..., QueryStream]
) -> None:
    rng = random.Random(2)
    now_ms = time.time_ns() // 1_000_000
    good = [decode_signed(asked("hospital-b", place.agreement, now_ms=now_ms)) for _ in range(4)]
    whole = [encode_to_site(number, signed) for number, signed in enumerate(good, 1)]
    forged = SignedQuery(good[0].content, good[1].signature)
    hostile_router = HostileRouter(
        [*(hostile(rng, whole) for _ in range(5)), encode_to_site(9, forged)]
    )
    server = grpc.server(ThreadPoolExecutor(4), handlers=[hostile_router])
    folder = place.folder
    credentials = grpc.ssl_server_credentials(
        [(folder.key("router").read_bytes(), folder.certificate("router").read_bytes())],
        folder.ca.read_bytes(),
        require_client_auth=True,
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    stream = serve("hospital-a", port)
    until(lambda: not hostile_router.messages, "all messages were sent")
    assert hostile_router.refused >= 1
    status = stream.status()
    assert status["healthy"]
    assert int(status["connections"]) > 1, "what is no message ends the stream, and it comes back"
    stream.stop()
    server.stop(0).wait()


def test_a_router_that_reads_no_answers_gets_no_more(place: Place) -> None:
    """Or the answers would pile up in the memory of the site."""
    sent, ended = 0, threading.Event()

    def attach(_: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        nonlocal sent
        signed = SignedQuery(b"x", bytes(64))
        while not ended.is_set() and sent < 100_000:
            yield encode_to_site(sent + 1, signed)
            sent += 1

    handler = grpc.stream_stream_rpc_method_handler(attach)
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(SERVICE, {ATTACH: handler})]
    )
    key, certificate = place.folder.key("router"), place.folder.certificate("router")
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), certificate.read_bytes())], place.folder.ca.read_bytes(), True
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    answered = 0

    def answer(*_: object) -> Refusal:
        nonlocal answered
        answered += 1
        return Refusal("malformed", "x" * 1000)

    stream = QueryStream(place.network("hospital-a", port), answer, lambda: None)
    stream.start()
    try:
        before = -1
        while answered == 0 or answered != before:  # until nothing moves any more
            before = answered
            time.sleep(0.5)
        assert before < sent, "more was sent than is taken on"
        assert stream.status()["attached"]
    finally:
        stream.stop()
        ended.set()
        server.stop(0).wait()


def memory_bytes() -> int:
    """Of this process, with the router in it."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@contextmanager
def process(*arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """A Python module as a process that is killed at the end, if not before."""
    running = subprocess.Popen([sys.executable, "-m", *map(str, arguments)])
    try:
        yield running
    finally:
        running.kill()
        running.wait()


@pytest.mark.slow
def test_killed_processes_cost_what_they_held_and_no_more(place: Place) -> None:
    port, health = free_port(), free_port()
    place.folder.settings_file.write_text(
        place.folder.settings_file.read_text().replace(
            "router: {listen: 0.0.0.0, port: 9444, health_port: 9446}",
            f"router: {{listen: 127.0.0.1, port: {port}, health_port: {health}}}",
        )
    )
    router = ("fedhash_server.router", place.folder.path)
    site = ("tests.attached_site", place.path)

    def answered() -> set[str]:
        try:
            merged = ask(place, port, query(k=20), timeout_s=2)
        except ProtocolError:
            return {"no router"}
        found = {each.site for each in merged.sites if each.outcome == "answered"}
        assert list(merged.hits) == expected(sorted(found), query(k=20))
        return found

    with process(*site, "hospital-a", port), process(*site, "hospital-b", port) as second:
        with process(*router) as first:
            until(lambda: answered() == {"hospital-a", "hospital-b"}, "both answer")
            second.kill()
            until(lambda: answered() == {"hospital-a"}, "one is left")
            first.kill()
            first.wait()
            assert answered() == {"no router"}
        with process(*router), process(*site, "hospital-b", port):
            until(lambda: answered() == {"hospital-a", "hospital-b"}, "both are back")
    for name in ("hospital-a", "hospital-b"):
        log = place.path / name / "audit.jsonl"
        AuditLog(log).close()  # removes what the kill left unfinished
        assert all(each.content["kind"] == "query" for each in read_audit_log(log))
