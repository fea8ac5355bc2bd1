"""What would leave one site, by its own file and its agreement.

1. Where the site's settings shut something off, it is not listed: no section `queries`, no answers.
2. Sizes are upper bounds: of a message of a round at the largest model that the site's file allows,
   of an answer at the most hits that file and agreement allow. Of Flower's calls it is the longest
   body that the coordinator's gateway takes; longer messages travel in several.
3. Fields come from the code (`wire_fields`), their meanings from `meanings`.

    >>> egress_of(settings, agreement).connections[0].to
    'coordinator.example.org:9443'
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from urllib.request import getproxies

from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.run_pb2 import GetRunRequest
from google.protobuf.message import Message

from fedhash.agreement import Agreement
from fedhash.registry.wire import LARGEST_REQUEST_BYTES
from fedhash.registry.wire.releases_pb2 import CurrentRequest, FetchRequest
from fedhash.rounds.training_messages import Refusal, TrainReply
from fedhash.search.hit import HANDLE_BYTES
from fedhash.search.wire.queries import LARGEST_SIGNED_BYTES
from fedhash.search.wire.search_pb2 import FromSite, Query, SignedQuery
from fedhash.secagg.messages import KeysReply, MaskedReply, SharesReply, UnmaskedReply
from fedhash.secagg.roster import KEY_BYTES, SEALED_BYTES, SECRET_BYTES
from fedhash_client.egress import meanings
from fedhash_client.egress.wire_fields import WireField, fields_of_protobuf, fields_of_reply
from fedhash_client.network_settings import NetworkSettings
from fedhash_client.settings import SiteSettings

__all__ = [
    "FLOWER_CALLS",
    "PLAIN_REPLIES",
    "PROTOBUF_SENT",
    "SECURE_REPLIES",
    "Connection",
    "Egress",
    "SentMessage",
    "egress_of",
]

# Path of each call of Flower's Fleet API to what is sent; tests hold it against Flower's own client
# and against what the gateway lets through.
FLOWER_CALLS: dict[str, type[Message]] = {
    "activate-node": ActivateNodeRequest,
    "deactivate-node": DeactivateNodeRequest,
    "send-node-heartbeat": SendNodeHeartbeatRequest,
    "pull-messages": PullMessagesRequest,
    "push-messages": PushMessagesRequest,
    "get-run": GetRunRequest,
    "get-fab": GetFabRequest,
    "push-object": PushObjectRequest,
    "pull-object": PullObjectRequest,
    "confirm-message-received": ConfirmMessageReceivedRequest,
}
SECURE_REPLIES = {
    KeysReply: "a secure round begins",
    SharesReply: "the keys of all sites have been shown",
    MaskedReply: "this site has trained",
    UnmaskedReply: "the coordinator says which sites answered",
}
PLAIN_REPLIES = {TrainReply: "this site has trained in a round without secure aggregation"}
PROTOBUF_SENT: tuple[type[Message], ...] = (
    FromSite,
    SignedQuery,
    Query,
    CurrentRequest,
    FetchRequest,
)

_HEADER_BYTES = 4096  # run, round and hashes, the names of the arrays, the container's own
_MOST_NEIGHBOURS = 255  # `secagg.graph`: the nonzero points of GF(256)
_NAME_BYTES = 1202  # 200 characters of a site's name, as JSON escapes them at worst
_SHARES_BYTES = _MOST_NEIGHBOURS * (SEALED_BYTES + 2 * 32) + 32
_SIGNED_KEYS_BYTES = KEY_BYTES + 64
_REFUSAL_BYTES = 8192  # 64 and 500 characters, as JSON and protobuf write them at worst
_CHUNK_BYTES = 16 << 20  # the gateway takes no longer body

_NEVER = (
    "images, reports and signals, or what is prepared from them",
    "study ids, patient ids, and the manifest",
    "codes of the archive: answers hold handles, distances and scores",
    "labels and attributes of single studies; a query's filter tells by its hits who has one",
    "the handle key, every other private key, and the list of who withdrew",
    "the privacy ledger and the audit log",
)


@dataclass(frozen=True)
class Connection:
    """A connection that the site opens.

    Attributes:
        to: Host and port.
        protocol: From the bottom to the top.
        opened_by: Which program.
        authenticated: How each side knows the other.
        carries: What for.
    """

    to: str
    protocol: str
    opened_by: str
    authenticated: str
    carries: str


@dataclass(frozen=True)
class SentMessage:
    """A kind of message that leaves.

    Attributes:
        name: Of its class, or of the call.
        to: Over which connection, and to whom in the end.
        when: What makes the site send it.
        largest_bytes: No such message is longer.
        fields: What it holds.
    """

    name: str
    to: str
    when: str
    largest_bytes: int
    fields: tuple[WireField, ...]


@dataclass(frozen=True)
class Egress:
    """Everything that would leave a site, what listens at it, and what is never sent."""

    connections: tuple[Connection, ...]
    messages: tuple[SentMessage, ...]
    listens: tuple[str, ...]
    never_sent: tuple[str, ...]
    notes: tuple[str, ...]


def egress_of(settings: SiteSettings, agreement: Agreement) -> Egress:
    """What would leave the site of these files."""
    network = settings.network
    listens = []
    if settings.state is not None:
        listens = [
            f"{settings.state}/site.sock and control.sock: Unix sockets, mode 0600, this user only",
            f"127.0.0.1:{settings.daemon.health_port}: /health and /metrics, for anyone here",
        ]
    if network is None:
        return Egress((), (), tuple(listens), _NEVER, ())
    if settings.state is not None:
        listens.append(
            f"127.0.0.1:{settings.daemon.supernode_port}: Flower's SuperNode, for anyone on this "
            "machine, without a credential"
        )
    return Egress(
        tuple(_connections(settings, agreement, network)),
        tuple(_messages(settings, agreement, network)),
        tuple(listens),
        _NEVER,
        tuple(_notes(settings, network)),
    )


def _connections(
    settings: SiteSettings, agreement: Agreement, network: NetworkSettings
) -> Iterator[Connection]:
    yield Connection(
        network.superlink,
        "TCP, TLS 1.3, HTTP/1.1, Flower's Fleet API",
        "the SuperNode (fedhash_client.supernode), which the daemon starts",
        f"it by {network.ca} alone; this site by {network.certificate}, and each call by a "
        f"signature of {network.supernode_key}",
        "training rounds; it is asked for work every few seconds",
    )
    purposes = ["searches of this site's users at other sites, when they ask for them"]
    if settings.queries is not None:
        asked = ", ".join(settings.queries.purposes)
        purposes.append(f"answers to signed queries of members, for {asked}")
    if agreement.release_key is not None:
        purposes.append(
            f"the question which release is current, each {settings.releases.poll_s:g} s"
        )
    yield Connection(
        network.router,
        "TCP, TLS, HTTP/2, gRPC",
        "the daemon, and 'fedhash-site search --federated'",
        f"it by {network.ca} alone; this site by {network.certificate}",
        "; ".join(purposes),
    )


def _messages(
    settings: SiteSettings, agreement: Agreement, network: NetworkSettings
) -> Iterator[SentMessage]:
    gateway = f"{network.superlink}, to the coordinator"
    for method, request in FLOWER_CALLS.items():
        yield SentMessage(
            f"Flower: {method}",
            f"{network.superlink}, to the SuperLink",
            "the SuperNode runs",
            _CHUNK_BYTES,
            fields_of_protobuf(request, meanings.FLOWER),
        )
    allowed = settings.training.aggregations
    sizes = _reply_sizes(settings, agreement)
    replies = (SECURE_REPLIES if "secure" in allowed else {}) | (
        PLAIN_REPLIES if "plain" in allowed else {}
    )
    for reply, when in (replies | {Refusal: "this site's rules forbid a request"}).items():
        fields = fields_of_reply(reply, meanings.ROUND_REPLIES.get(reply.__name__, {}))
        yield SentMessage(f"reply: {reply.__name__}", gateway, when, sizes[reply], fields)

    def by_router(
        name: str, message: type[Message], to: str, when: str, largest_bytes: int
    ) -> SentMessage:
        words = meanings.QUERIES | meanings.RELEASES
        fields = fields_of_protobuf(message, words)
        return SentMessage(name, f"{network.router}, {to}", when, largest_bytes, fields)

    if settings.queries is not None:
        most = min(settings.queries.largest_k, agreement.largest_k)
        per_hour = settings.queries.queries_per_hour
        if agreement.search is not None:
            per_hour = min(per_hour, agreement.search.queries_per_hour)
        yield by_router(
            "answer: FromSite",
            FromSite,
            "to the router, and from there to whoever signed the query",
            f"a member asks; at most {most} hits, at most {per_hour} answers an hour to each; and "
            "when the site's release changes",
            _REFUSAL_BYTES + most * (HANDLE_BYTES + 5 + 5),
        )
    own = "a user of this site searches with --federated"
    for message in (SignedQuery, Query):
        name = f"query: {message.DESCRIPTOR.name}"
        everyone = "to the router and to every site"
        yield by_router(name, message, everyone, own, LARGEST_SIGNED_BYTES)
    if agreement.release_key is not None:
        for asked, when in (
            (CurrentRequest, f"every {settings.releases.poll_s:g} s"),
            (FetchRequest, "a new release is current"),
        ):
            name = f"release: {asked.DESCRIPTOR.name}"
            yield by_router(name, asked, "to it", when, LARGEST_REQUEST_BYTES)


def _reply_sizes(settings: SiteSettings, agreement: Agreement) -> dict[type, int]:
    parameters = settings.training.largest_model_parameters
    numbers = 2 * parameters + 4 * len(agreement.findings) + 3  # both blocks, sums, loss and counts
    packed = -(-numbers * agreement.secure_aggregation.ring_bits // 8)
    return {
        KeysReply: _HEADER_BYTES + _SIGNED_KEYS_BYTES,
        SharesReply: _HEADER_BYTES + _SHARES_BYTES,
        MaskedReply: _HEADER_BYTES + packed + _SIGNED_KEYS_BYTES + 16,
        UnmaskedReply: _HEADER_BYTES
        + _REFUSAL_BYTES
        + _MOST_NEIGHBOURS * (SECRET_BYTES + _NAME_BYTES)
        + _SHARES_BYTES,
        TrainReply: _HEADER_BYTES + 4 * numbers + 4,
        Refusal: _REFUSAL_BYTES,
    }


def _notes(settings: SiteSettings, network: NetworkSettings) -> Iterator[str]:
    yield (
        f"the names in {network.superlink} and {network.router} are looked up by this machine's "
        "name service"
    )
    if proxy := getproxies().get("https"):
        place = proxy.rpartition("//")[2].rpartition("@")[2]  # without a password
        yield f"connections go through the proxy {place}, which sees their names and sizes"
    yield (
        "times and sizes of messages tell whoever watches the network when this site trains and "
        "answers"
    )
    if "plain" in settings.training.aggregations:
        yield (
            "training.aggregations allows plain: the coordinator then sees this site's own update"
        )
    if settings.queries is not None:
        yield (
            "distances and scores tell about codes: who may ask often can learn one of a study, "
            "and with it findings. Rate, radius (smallest_kappa) and bucket bound that"
        )
    if settings.privacy is None:
        yield "there is no section privacy: what models tell of a patient has no bound"
    yield (
        "the daemon's log goes to standard error, and from there wherever this machine sends its "
        "logs; it holds nothing of a patient"
    )
