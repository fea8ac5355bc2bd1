"""The port between a coordinator and its sites: one exchange of one stage.

A protocol of any number of stages runs over this one method, so the same state machines work in
process, in Flower's simulation and over the network. Rules of every engine:

1. Each asked site has exactly one answer: its reply, or a SiteFailure. An engine never raises for
   what a site did, and never waits longer than `timeout_s` for a late one.
2. Answers come one by one, in any order, so nobody has to hold all of them at once.
3. Peers share no mutable memory: what a site receives is a copy.
4. An engine delivers; it does not look into messages. What a reply is worth, the coordinator says.

    >>> for answer in engine.ask("train", {"hospital-a": request}, timeout_s=600):
    ...     answer.site, answer.outcome
    ('hospital-a', SiteFailure(reason='late', detail='no answer within 600 s'))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from fedhash.rounds.messages import Message

__all__ = ["Answer", "Engine", "SiteFailure"]


@dataclass(frozen=True, slots=True)
class SiteFailure:
    """Why a site has no usable reply.

    Attributes:
        reason: A short machine-readable name, such as ``late`` or ``unreachable``.
        detail: What happened, for the person who reads the round's record.
    """

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of asking one site.

    Attributes:
        site: Its name.
        outcome: Its reply, or why there is none.
        seconds: From sending the request to having the reply, or to giving up.
        request_bytes: Size of the request, 0 if it was not sent.
        reply_bytes: Size of the reply, 0 for none.
    """

    site: str
    outcome: Message | SiteFailure
    seconds: float = 0.0
    request_bytes: int = 0
    reply_bytes: int = 0


@runtime_checkable  # the test suite checks types at run time
class Engine(Protocol):
    """Carries messages to sites and brings their replies back."""

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites that can be asked now, sorted."""
        ...

    def ask(
        self, stage: str, requests: Mapping[str, Message], timeout_s: float
    ) -> Iterator[Answer]:
        """Send each site its request and bring the replies as they come.

        Args:
            stage: Name of the protocol stage, such as ``train``; for logs and routing.
            requests: Site name to message.
            timeout_s: A site that has not answered after so many seconds is a failure ``late``.

        Returns:
            One answer for each asked site; what is not consumed need not be waited for.
        """
        ...
