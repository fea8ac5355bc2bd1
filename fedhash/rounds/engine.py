"""The port between a coordinator and its sites: one exchange of one stage.

A protocol of any number of stages runs over this one method, so the same state machines work in
process, in Flower's simulation and over the network. Rules of every engine:

1. Each asked site has exactly one entry in the answer: its reply, or a SiteFailure. An engine never
   raises for what a site did, and never waits longer than `timeout_s` for a late one.
2. Peers share no mutable memory: what a site receives is a copy.
3. An engine delivers; it does not look into messages. What a reply is worth, the coordinator says.

    >>> answers = engine.ask("train", {"hospital-a": request}, timeout_s=600)
    >>> answers["hospital-a"]
    SiteFailure(reason='late', detail='no answer within 600 s')
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from fedhash.rounds.messages import Message

__all__ = ["Engine", "SiteFailure"]


@dataclass(frozen=True, slots=True)
class SiteFailure:
    """Why a site has no usable reply.

    Attributes:
        reason: A short machine-readable name, such as ``late`` or ``unreachable``.
        detail: What happened, for the person who reads the round's record.
    """

    reason: str
    detail: str


@runtime_checkable  # the test suite checks types at run time
class Engine(Protocol):
    """Carries messages to sites and brings their replies back."""

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites that can be asked now, sorted."""
        ...

    def ask(
        self, stage: str, requests: Mapping[str, Message], timeout_s: float
    ) -> Mapping[str, Message | SiteFailure]:
        """Send each site its request and collect the replies.

        Args:
            stage: Name of the protocol stage, such as ``train``; for logs and routing.
            requests: Site name to message.
            timeout_s: A site that has not answered after so many seconds is a failure ``late``.

        Returns:
            One entry for each asked site.
        """
        ...
