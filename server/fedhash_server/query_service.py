"""The query router on gRPC: sites attach by a stream, members ask by a call.

All decisions are in `fedhash.search.routing`; this is its network, in one event loop.

1. Nothing of a call is read before its certificate is known to be a member's.
2. A stream ends when its site is struck off, its certificate expires, a newer stream of the site
   comes, or it sends what is no message. Each costs that site's answers and nothing else.
3. A site may open so many streams a minute; the newest takes the place of the one before. What it
   does fills no log: so many lines an hour are of one site, and the metrics tell of all.
4. A caller that hangs up ends its query. A reply is sent at the query's deadline at the latest.

    >>> service = QueryService(members, RouterLimits())
    >>> server.add_generic_rpc_handlers([service.handler()])
    >>> watch = asyncio.create_task(service.watch())
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

import grpc
from grpc import aio

from fedhash.enrolment import Peer, Role
from fedhash.errors import CertificateError, MessageError, ProtocolError, RefusedError
from fedhash.search.allowance import Allowance
from fedhash.search.answers import Gathered, Refusal
from fedhash.search.routing import AttachedSite, Router
from fedhash.search.terms import COORDINATOR, RouterLimits
from fedhash.search.wire.answers import encode_reply
from fedhash.search.wire.methods import ASK, ATTACH, SERVICE
from fedhash_server.members import Members

__all__ = ["QueryService"]

_SITE: frozenset[Role] = frozenset({"site"})
_ASKER: frozenset[Role] = frozenset({"site", "coordinator"})
_WATCHED_EVERY_S = 1.0
_LONGEST_CLOSING_S = 2.0
_STREAMS_A_MINUTE = 20  # of a site; one that always fails opens seven (`QueryStream` pauses)
_LINES_AN_HOUR = 60  # of a site that comes and goes
_WARNINGS_A_MINUTE = 60  # a member could fill the disk with them

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Attachment:
    certificate: bytes
    site: str
    task: asyncio.Task[None]
    work: asyncio.Event = field(default_factory=asyncio.Event)
    ending: asyncio.Event = field(default_factory=asyncio.Event)


class QueryService:
    """The service `fedhash.search.v1.Router`.

    Attributes:
        outcomes: How many queries were "answered", were "partial", or refused by which rule.
        site_outcomes: Outcome of a query at a site to how many.
        attachments: Of a site: how often it opened a stream.

    Args:
        members: Who may come.
        limits: What is taken on.
    """

    def __init__(self, members: Members, limits: RouterLimits) -> None:
        self._members = members
        self._router = Router(members.agreement, limits)
        self._attachments: dict[int, _Attachment] = {}
        self._waiting: dict[int, asyncio.Future[Gathered]] = {}
        self.outcomes: Counter[str] = Counter()
        self.site_outcomes: Counter[str] = Counter()
        self.attachments: Counter[str] = Counter()
        self._warnings = Allowance(_WARNINGS_A_MINUTE, 60_000)
        self._streams: dict[str, Allowance] = {}  # as many as the consortium has members
        self._lines: dict[str, Allowance] = {}

    def handler(self) -> grpc.GenericRpcHandler:
        """The service's methods for a server of grpc.aio."""
        methods: dict[str, Any] = {
            ASK: grpc.unary_unary_rpc_method_handler(self._ask),
            ATTACH: grpc.stream_stream_rpc_method_handler(self._attach),
        }
        handler: grpc.GenericRpcHandler = grpc.method_handlers_generic_handler(SERVICE, methods)
        return handler

    def attached(self) -> tuple[AttachedSite, ...]:
        """The sites that have a stream."""
        return self._router.attached()

    @property
    def under_way(self) -> int:
        """Queries that have not ended."""
        return self._router.under_way

    async def close(self) -> None:
        """End all streams; the server goes on taking calls until it is stopped itself."""
        for attachment in self._attachments.values():
            attachment.ending.set()
        if tasks := [attachment.task for attachment in self._attachments.values()]:
            await asyncio.wait(tasks, timeout=_LONGEST_CLOSING_S)

    async def watch(self) -> None:
        """End streams of those who are no longer members; runs until it is cancelled."""
        while True:
            await asyncio.sleep(_WATCHED_EVERY_S)
            self._members.refresh()
            self._take_agreement()
            for attachment in list(self._attachments.values()):
                try:
                    self._members.check(attachment.certificate, _SITE)
                except CertificateError as error:
                    _log.warning("%s is detached: %s", attachment.site, error)
                    attachment.ending.set()
            self._router.expire(_now_ms())
            self._deliver()

    async def _admit(self, context: Any, roles: frozenset[Role]) -> Peer:
        try:
            peer = self._members.peer(context.auth_context(), roles)
        except CertificateError as error:
            self.outcomes["not_admitted"] += 1
            self._warn("%s is not admitted: %s", context.peer(), error)
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        self._take_agreement()
        return peer

    def _warn(self, message: str, *arguments: object) -> None:
        if self._warnings.take(_now_ms()):
            _log.warning(message, *arguments)

    def _tell(self, site: str, message: str, *arguments: object) -> None:
        if _take(self._lines, site, _LINES_AN_HOUR, 3_600_000):
            _log.info("%s is " + message, site, *arguments)

    def _take_agreement(self) -> None:
        self._router.agreement = self._members.agreement

    async def _ask(self, request: bytes, context: Any) -> bytes:
        peer = await self._admit(context, _ASKER)
        requester = peer.name if peer.role == "site" else COORDINATOR
        try:
            ticket = self._router.ask(requester, request, _now_ms())
        except (MessageError, RefusedError) as error:
            reason = error.reason if isinstance(error, RefusedError) else "malformed"
            self.outcomes[reason] += 1
            return encode_reply(Refusal(reason, str(error)))
        self._waiting[ticket] = asyncio.get_running_loop().create_future()
        for attachment in self._attachments.values():
            attachment.work.set()
        try:
            gathered = await self._result(ticket)
        finally:  # also of a caller that hung up
            self._router.cancel(ticket)
            self._waiting.pop(ticket, None)
        whole = all(each.outcome == "answered" for each in gathered.sites)
        self.outcomes["answered" if whole else "partial"] += 1
        self.site_outcomes.update(each.outcome for each in gathered.sites)
        try:
            return encode_reply(gathered)
        except MessageError as error:
            return encode_reply(Refusal("too_large", f"{error}; ask for fewer hits"))

    async def _result(self, ticket: int) -> Gathered:
        future = self._waiting[ticket]
        self._deliver()  # a query that no site can answer has ended already
        deadline_ms = self._router.deadline_ms(ticket)
        while not future.done():
            left_s = (deadline_ms - _now_ms()) / 1000
            await asyncio.wait([future], timeout=max(0.0, left_s))
            self._router.expire(_now_ms())
            self._deliver()
        return future.result()

    def _deliver(self) -> None:
        for ticket, gathered in self._router.take_finished():
            future = self._waiting.get(ticket)
            if future is not None and not future.done():
                future.set_result(gathered)

    async def _attach(self, _: Any, context: Any) -> None:
        peer = await self._admit(context, _SITE)
        (certificate,) = context.auth_context()["x509_pem_cert"]
        if not _take(self._streams, peer.name, _STREAMS_A_MINUTE, 60_000):
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{peer.name!r} opened more than {_STREAMS_A_MINUTE} streams a minute; does a "
                "second daemon run with its certificate? Wait a minute",
            )
        try:
            stream = self._router.attach(peer.name)
        except RefusedError as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        self._deliver()  # a former stream of the site has left queries
        self.attachments[peer.name] += 1
        for former in self._attachments.values():
            if former.site == peer.name:
                former.ending.set()
        serving = cast("asyncio.Task[None]", asyncio.current_task())
        attachment = _Attachment(certificate, peer.name, serving)
        self._attachments[stream] = attachment
        tasks: list[asyncio.Task[Any]] = []
        try:  # from here on, for a site may hang up before it is told anything
            await context.send_initial_metadata(())  # by this it knows that it is attached
            self._tell(peer.name, "attached from %s", context.peer())
            tasks += [
                asyncio.create_task(self._read(stream, attachment, context)),
                asyncio.create_task(self._write(stream, attachment, context)),
                asyncio.create_task(attachment.ending.wait()),
            ]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            del self._attachments[stream]
            self._router.detach(stream)
            self._deliver()
            self._tell(peer.name, "detached")
        faults = [each for each in ended if isinstance(each, ProtocolError)]
        if faults:
            self._warn("%s broke the protocol: %s", peer.name, faults[0])
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(faults[0]))

    async def _read(self, stream: int, attachment: _Attachment, context: Any) -> None:
        while (data := await context.read()) is not aio.EOF:
            self._router.received(stream, data)
            self._deliver()
            attachment.work.set()

    async def _write(self, stream: int, attachment: _Attachment, context: Any) -> None:
        while True:
            while (data := self._router.next_for(stream)) is not None:
                await context.write(data)
            attachment.work.clear()
            await attachment.work.wait()


def _take(of: dict[str, Allowance], site: str, count: int, window_ms: int) -> bool:
    return of.setdefault(site, Allowance(count, window_ms)).take(_now_ms())


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
