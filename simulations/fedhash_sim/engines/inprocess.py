"""The engine without a network: a plain call to each site, one after another.

1. Sites are called in the order of their names.
2. Request and reply pass through their byte form, so peers share no array and a message that
   another engine could not carry fails here as well.
3. A call runs to its end: in one process no site is late, and `timeout_s` has no effect.

    >>> engine = InProcessEngine([SiteAgent("hospital-a", agreement, trainer, MemorySiteState())])
    >>> answers = engine.ask("train", {"hospital-a": request}, timeout_s=600)
    >>> engine.exchanges[-1].reply_bytes
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedhash.errors import MessageError
from fedhash.rounds.engine import SiteFailure
from fedhash.rounds.messages import Message
from fedhash.rounds.site import SiteAgent

__all__ = ["Exchange", "InProcessEngine"]


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and its reply, for reports on time and traffic."""

    stage: str
    site: str
    seconds: float
    request_bytes: int
    reply_bytes: int


class InProcessEngine:
    """Holds the sites' agents.

    Attributes:
        exchanges: All exchanges so far, in their order.
    """

    def __init__(self, agents: Sequence[SiteAgent]) -> None:
        self._agents = {agent.site: agent for agent in agents}
        self.exchanges: list[Exchange] = []

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of all sites, sorted."""
        return tuple(sorted(self._agents))

    def ask(
        self,
        stage: str,
        requests: Mapping[str, Message],
        timeout_s: float,  # noqa: ARG002 - the port's signature
    ) -> Mapping[str, Message | SiteFailure]:
        """See :class:`fedhash.rounds.engine.Engine`."""
        # sites that get the same message share its byte form
        encoded = {id(message): message.encode() for message in requests.values()}
        return {
            site: self._ask_one(stage, site, encoded[id(requests[site])])
            for site in sorted(requests)
        }

    def _ask_one(self, stage: str, site: str, asked: bytes) -> Message | SiteFailure:
        if site not in self._agents:
            return SiteFailure("unreachable", f"there is no site {site!r} in this engine")
        agent = self._agents[site]
        started = time.perf_counter()
        try:
            delivered = Message.decode(asked, max_bytes=agent.max_message_bytes)
        except MessageError as error:
            return SiteFailure("undeliverable", str(error))
        replied = agent.handle(delivered).encode()
        seconds = time.perf_counter() - started
        self.exchanges.append(Exchange(stage, site, seconds, len(asked), len(replied)))
        return Message.decode(replied, max_bytes=agent.max_message_bytes)
