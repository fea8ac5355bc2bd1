"""The engine without a network: a plain call to each site, one after another.

1. Sites are called in the order of their names.
2. Request and reply pass through their byte form, so peers share no array and a message that
   another engine could not carry fails here as well.
3. A call runs to its end: in one process no site is late, and `timeout_s` has no effect.

    >>> engine = InProcessEngine([agent_of_hospital_a, agent_of_hospital_b])
    >>> [answer.reply_bytes for answer in engine.ask("train", {"hospital-a": request}, 600)]
    [4032]
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from fedhash.errors import MessageError
from fedhash.rounds.engine import Answer, SiteFailure
from fedhash.rounds.messages import Message
from fedhash.rounds.site import SiteAgent

__all__ = ["InProcessEngine"]


class InProcessEngine:
    """Holds the sites' agents."""

    def __init__(self, agents: Sequence[SiteAgent]) -> None:
        self._agents = {agent.site: agent for agent in agents}

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of all sites, sorted."""
        return tuple(sorted(self._agents))

    def ask(
        self,
        stage: str,  # noqa: ARG002 - the port's signature
        requests: Mapping[str, Message],
        timeout_s: float,  # noqa: ARG002 - the port's signature
    ) -> Iterator[Answer]:
        """See :class:`fedhash.rounds.engine.Engine`."""
        # sites that get the same message share its byte form
        encoded = {id(message): message.encode() for message in requests.values()}
        for site in sorted(requests):
            yield self._ask_one(site, encoded[id(requests[site])])

    def _ask_one(self, site: str, asked: bytes) -> Answer:
        if site not in self._agents:
            failure = SiteFailure("unreachable", f"there is no site {site!r} in this engine")
            return Answer(site, failure)
        agent = self._agents[site]
        started = time.perf_counter()
        try:
            delivered = Message.decode(asked, max_bytes=agent.max_message_bytes)
        except MessageError as error:
            return Answer(site, SiteFailure("undeliverable", str(error)))
        replied = agent.handle(delivered).encode()
        seconds = time.perf_counter() - started
        reply = Message.decode(replied, max_bytes=agent.max_message_bytes)
        return Answer(site, reply, seconds, len(asked), len(replied))
