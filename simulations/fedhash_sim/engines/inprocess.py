"""The engine without a network: a plain call to each site, one after another.

1. Sites are called in the order of their names.
2. Request and reply pass through their byte form, so peers share no array and a message that
   another engine could not carry fails here as well.
3. A call runs to its end: in one process no site is late, and `timeout_s` has no effect.

    >>> engine = InProcessEngine([SiteAgent("hospital-a", agreement, trainer, MemorySiteState())])
    >>> answers = engine.ask("train", {"hospital-a": request}, timeout_s=600)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedhash.errors import MessageError
from fedhash.rounds.engine import SiteFailure
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
    ) -> Mapping[str, Message | SiteFailure]:
        """See :class:`fedhash.rounds.engine.Engine`."""
        # sites that get the same message share its byte form
        encoded = {id(message): message.encode() for message in requests.values()}
        return {site: self._ask_one(site, encoded[id(requests[site])]) for site in sorted(requests)}

    def _ask_one(self, site: str, asked: bytes) -> Message | SiteFailure:
        if site not in self._agents:
            return SiteFailure("unreachable", f"there is no site {site!r} in this engine")
        agent = self._agents[site]
        try:
            delivered = Message.decode(asked, max_bytes=agent.max_message_bytes)
        except MessageError as error:
            return SiteFailure("undeliverable", str(error))
        replied = agent.handle(delivered).encode()
        return Message.decode(replied, max_bytes=agent.max_message_bytes)
