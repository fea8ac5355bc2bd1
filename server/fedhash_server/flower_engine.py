"""The coordinator's side of Flower: an Engine that reaches the sites through a Flower Grid.

Rules:

1. A node is a site because its relay says so (`query.identify`). A name outside the roster is
   refused, and a name that two nodes claim is served by neither: one of them is not the site.
2. Replies are polled here, after a tenth of the time that the exchange has taken so far: Flower's
   own `send_and_receive` looks every three seconds, which is longer than most exchanges. They are
   pulled one by one, because `pull_messages` returns the content of all that are ready; one is in
   memory at a time.
3. What a node does - silence, an error reply, bytes that are no message - becomes a SiteFailure.
4. A message is one opaque byte array, because Flower sends arrays in chunks and shares equal ones.

    >>> engine = FlowerEngine(grid, ["hospital-a", "hospital-b"])
    >>> [answer.outcome for answer in engine.ask("train", {"hospital-a": request}, timeout_s=600)]
    [Message(kind='train_reply', ...)]
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping

from flwr.app import Array, ArrayRecord, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.serverapp import Grid

from fedhash.errors import MessageError
from fedhash.rounds.engine import Answer, SiteFailure
from fedhash.rounds.messages import Message

__all__ = ["FlowerEngine"]

logger = logging.getLogger(__name__)

_IDENTIFY_TIMEOUT_S = 30.0  # the slowest exchange that was measured on a loaded machine took 9.4 s
_SHORTEST_POLL_S = 0.02
_LONGEST_POLL_S = 1.0
_POLL_SHARE = 0.1  # so polling makes an exchange longer by a twentieth, on average
_LONGEST_DETAIL = 1000
_TTL_MARGIN_S = 10.0  # Flower forgets a message at its ttl, and then fails when it is polled
_MAX_REPLY_BYTES = 1 << 30  # Flower was seen to carry 360 MB; a 90M-parameter model has that size

# Error codes of flwr.common.constant.ErrorCode and of fedhash_client.flower; others are "crashed".
_REASONS = {3: "late", 4: "late", 5: "unreachable", 1001: "no_answer"}


class FlowerEngine:
    """Asks sites over a Flower Grid: a SuperLink's or the simulation's.

    Args:
        grid: The Grid that Flower gives to the ServerApp.
        roster: Names of all sites of the consortium.
        join_timeout_s: So long, from now on, the engine waits for all sites to come online. Later
            a site that is absent is a failure at once, and is looked for again at the next ask.
        max_reply_bytes: Longer replies are refused unread.
        pause: Sleeps for the given seconds between two polls; may raise to end the run.
    """

    def __init__(
        self,
        grid: Grid,
        roster: Collection[str],
        *,
        join_timeout_s: float = 60.0,
        max_reply_bytes: int = _MAX_REPLY_BYTES,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._grid = grid
        self._join_deadline = time.monotonic() + join_timeout_s
        self._max_reply_bytes = max_reply_bytes
        self._pause = pause
        self._names: dict[int, str | None] = {}  # node to site; None is a refused node
        self._roster = frozenset(roster)

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites that can be asked now, sorted."""
        self._identify_nodes()
        online = set(self._grid.get_node_ids())
        return tuple(
            sorted(
                site
                for site in self._roster
                if len(nodes := self._nodes_of(site)) == 1 and nodes[0] in online
            )
        )

    def ask(
        self, stage: str, requests: Mapping[str, Message], timeout_s: float
    ) -> Iterator[Answer]:
        """Send each site its request and bring the replies as they come (see Engine.ask)."""
        self._identify_nodes()
        asked: dict[int, str] = {}
        for site in requests:
            nodes = self._nodes_of(site)
            if len(nodes) == 1:
                asked[nodes[0]] = site
            elif nodes:
                failure = SiteFailure(
                    "duplicate_name",
                    f"{len(nodes)} nodes call themselves {site!r}; stop all but the site's own",
                )
                yield Answer(site, failure)
            else:
                yield Answer(site, SiteFailure("unreachable", "no node of this site is online"))
        # sites that get the same message share one encoded copy
        packed = {id(message): _pack(message) for message in requests.values()}
        contents = {node: packed[id(requests[site])] for node, site in asked.items()}
        started = time.monotonic()
        for node, reply in self._exchange("query.relay", stage, contents, timeout_s):
            seconds = time.monotonic() - started
            sent = _size(contents[node])
            if isinstance(reply, SiteFailure):
                answer = Answer(asked[node], reply, seconds, sent)
            else:
                outcome = _unpack(reply, max_bytes=self._max_reply_bytes)
                answer = Answer(asked[node], outcome, seconds, sent, _size(reply))
                _release(reply)
                del outcome
            yield answer
            del answer  # before the next one is pulled

    def _nodes_of(self, site: str) -> list[int]:
        return [node for node, name in self._names.items() if name == site]

    def _identify_nodes(self) -> None:
        """Ask new nodes for their names; before the join deadline, wait for the whole roster."""
        tried: set[int] = set()
        while True:
            new = set(self._grid.get_node_ids()) - self._names.keys() - tried
            tried |= new
            for node, reply in self._exchange(
                "query.identify", "identify", dict.fromkeys(new, RecordDict()), _IDENTIFY_TIMEOUT_S
            ):
                if isinstance(reply, SiteFailure):
                    logger.warning("node %d does not name its site: %s", node, reply.detail)
                else:
                    self._names[node] = self._accepted_name(node, reply)
            if self._roster.issubset(self._names.values()):
                return
            if time.monotonic() >= self._join_deadline:
                return
            self._pause(_SHORTEST_POLL_S)

    def _accepted_name(self, node: int, reply: RecordDict) -> str | None:
        record = reply.config_records.get("site")
        name = record.get("name") if record is not None else None
        if isinstance(name, str) and name in self._roster:
            return name
        logger.warning("node %d names itself %r, which is no site of the roster", node, name)
        return None

    def _exchange(
        self, message_type: str, stage: str, contents: Mapping[int, RecordDict], timeout_s: float
    ) -> Iterator[tuple[int, RecordDict | SiteFailure]]:
        """One request and one reply for each node, as they come, until `timeout_s` is over."""
        started = time.monotonic()
        waiting: dict[str, int] = {}
        for node, content in contents.items():
            request = FlowerMessage(
                content, node, message_type, ttl=timeout_s + _TTL_MARGIN_S, group_id=stage
            )
            message_id = next(iter(self._grid.push_messages([request])), None)
            if message_id is None:
                yield node, SiteFailure("unreachable", "Flower did not accept the message")
            else:
                waiting[message_id] = node
        while waiting:
            for message_id in list(waiting):
                replies = list(self._grid.pull_messages([message_id]))
                if replies:
                    yield waiting.pop(message_id), _content(replies.pop())
            elapsed_s = time.monotonic() - started
            if not waiting or elapsed_s >= timeout_s:
                break
            self._pause(min(max(_SHORTEST_POLL_S, _POLL_SHARE * elapsed_s), _LONGEST_POLL_S))
        for node in waiting.values():
            yield node, SiteFailure("late", f"no answer within {timeout_s:g} s")


def _pack(message: Message) -> RecordDict:
    data = message.encode()
    array = Array("uint8", (len(data),), "fedhash", data)
    return RecordDict({"message": ArrayRecord({"bytes": array})})


def _size(content: RecordDict) -> int:
    """Bytes of the message in a record of `_pack`'s form, 0 for any other."""
    record = content.array_records.get("message")
    return sum(len(array.data) for array in record.values()) if record is not None else 0


def _release(content: RecordDict) -> None:
    """Free the arrays now: records hold each other in cycles and wait for the garbage collector."""
    for record in content.array_records.values():
        record.clear()


def _unpack(content: RecordDict, *, max_bytes: int) -> Message | SiteFailure:
    record = content.array_records.get("message")
    if record is None or list(record) != ["bytes"]:
        return SiteFailure(
            "invalid_message", "the reply must hold one array record 'message' with array 'bytes'"
        )
    try:
        return Message.decode(record["bytes"].data, max_bytes=max_bytes)
    except MessageError as error:
        return SiteFailure("invalid_message", str(error))


def _content(reply: FlowerMessage) -> RecordDict | SiteFailure:
    if reply.has_content():
        return reply.content
    if not reply.has_error():
        return SiteFailure("invalid_message", "the reply has neither content nor error")
    # the text is the peer's and ends up in logs and terminals; a traceback ends with its cause
    detail = re.sub(r"[\x00-\x1f\x7f]+", " ", reply.error.reason or "no reason was given")
    return SiteFailure(_REASONS.get(reply.error.code, "crashed"), detail[-_LONGEST_DETAIL:])
