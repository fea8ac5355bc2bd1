"""Two digests of a request to mask: of all that is asked, and of the task whoever is asked.

Pair masks are bound to the whole request, so they cancel only among sites that were asked the same;
the fingerprint of a masked vector is bound to it, too, so the coordinator sees which sites were.
A sum is opened again for the same task only: a second request for the same round with another
model, other settings or another memory of one site would give a difference of sums that shows that
site. Who is asked may differ from attempt to attempt, so the cohort is no part of the task.

    >>> digests(request.to_message()).task
    '9f2c...'
"""

from __future__ import annotations

from typing import NamedTuple

from fedhash.rounds.messages import Message

__all__ = ["Digests", "digests"]


class Digests(NamedTuple):
    """Of one request to mask.

    Attributes:
        asked: SHA-256 over the whole request.
        task: SHA-256 (hex) over the request to train but its cohort.
    """

    asked: bytes
    task: str


def digests(mask: Message) -> Digests:
    """Hash a well-formed request to mask, as it travelled; the model is read once."""
    header, arrays = dict(mask.header), dict(mask.arrays)
    train, sealed = dict(header.pop("train")), arrays.pop("sealed")
    cohort = train.pop("cohort")
    task = Message("train", train, arrays).digest().hex()
    whole = Message(mask.kind, {**header, "task": task, "cohort": cohort}, {"sealed": sealed})
    return Digests(whole.digest(), task)
