"""How the sites' vectors become one weighted sum: a port with two halves, and its plain form.

The coordinator's half is a generator: it yields a `Stage` (messages to send), is resumed with the
answers, and returns the `Aggregate`. The site's half answers each message of the round and calls
`contribute` when it needs the site's vector. A protocol of more stages yields more often and
answers more kinds of message; neither the training nor the engines change.

Rules of every aggregation:

1. The sum runs over exactly those sites of the cohort that are not named in `SumRecord.left_out`.
2. What one site did wrong leaves that site out, with the reason, and never ends the round.
3. The same contributions give the same sum, whatever the order in which they arrived.
4. What happened is noted while it happens, so the record of a round that failed has it, too.

`PlainAggregation` shows every site's update to the coordinator: for comparisons, and for a single
site that trains alone. `fedhash.secagg` holds the form that shows the sum only.

Shape suffix: D length of a reply's vector.

    >>> steps = PlainAggregation().aggregate(request, SumRecord())
    >>> stage = next(steps)                       # Stage("train", {"hospital-a": Message(...)})
    >>> steps.send(answers)                       # StopIteration.value is the Aggregate
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64, Int64

from fedhash.errors import MessageError, ProtocolError, RefusedError
from fedhash.rounds.engine import Answer, SiteFailure
from fedhash.rounds.messages import Message
from fedhash.rounds.training_messages import (
    PLAIN_SUMS,
    Refusal,
    TrainReply,
    TrainRequest,
    slices,
)
from fedhash.secagg.floors import SecureCohort

__all__ = [
    "Aggregate",
    "Aggregation",
    "Answers",
    "Contribution",
    "PlainAggregation",
    "PlainSiteAggregation",
    "SiteAggregation",
    "Stage",
    "SumRecord",
    "answered",
]

Answers: TypeAlias = Iterable[Answer]  # one for each asked site, in any order


@dataclass(frozen=True, slots=True)
class Stage:
    """One exchange: what to send to whom.

    Attributes:
        name: The stage's name, handed to the engine.
        requests: Site name to message.
    """

    name: str
    requests: Mapping[str, Message]


@dataclass(frozen=True, slots=True, eq=False)
class Aggregate:
    """The outcome of a round's exchanges.

    Attributes:
        total: Sum of weight x vector over the counted sites; the blocks of `PLAIN_SUMS` are sums
            of the vectors themselves.
        weight: Sum of the weights.
        rounding_sd: Block name to the most that rounding added to a value of the block's mean, or
            of its sum if no weight multiplies it, as a standard deviation; empty for no rounding.
    """

    total: Float64[np.ndarray, " D"]
    weight: float
    rounding_sd: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class SumRecord:
    """How a sum came about, or how far it came.

    Attributes:
        left_out: Site name to the reason why it does not count.
        facts: Graph, threshold, how many took part and the like.
        notes: Site name to what went wrong with it although it counts.
    """

    left_out: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str | int | float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Contribution:
    """What a site adds to a round.

    Attributes:
        vector: The blocks of `reply_blocks`.
        weight: How much it counts.
        noise: The site's share of the round's noise, to add to the integers of the update inside a
            secure sum; None where the round shares none.
    """

    vector: Float32[np.ndarray, " D"] | Float64[np.ndarray, " D"]
    weight: float
    noise: Int64[np.ndarray, " d"] | None = None


@runtime_checkable  # the test suite checks types at run time
class Aggregation(Protocol):
    """The coordinator's half; lives as long as a run."""

    name: ClassVar[str]

    def aggregate(
        self, request: TrainRequest, record: SumRecord
    ) -> Generator[Stage, Answers, Aggregate]:
        """Run one round's exchanges with the request's cohort, and note in `record` what happens.

        Raises:
            ProtocolError: There is no sum; `record` tells how far it came.
        """
        ...


@runtime_checkable  # the test suite checks types at run time
class SiteAggregation(Protocol):
    """The site's half; lives as long as the site."""

    name: ClassVar[str]

    def answer(
        self,
        message: Message,
        contribute: Callable[[TrainRequest, SecureCohort | None], Contribution],
    ) -> Message:
        """Answer one message of a round.

        Args:
            message: From the coordinator, not validated yet.
            contribute: Checks a request against the agreement, trains and returns the vector. It is
                told whose vectors will be added to this one under masks; None where nobody's are.

        Raises:
            ProtocolError: The message is refused; the site turns it into a Refusal.
        """
        ...


class PlainAggregation:
    """One stage; the sum is taken in double precision in the order of the sites' names."""

    name: ClassVar[str] = "plain"

    def aggregate(
        self, request: TrainRequest, record: SumRecord
    ) -> Generator[Stage, Answers, Aggregate]:
        """See :class:`Aggregation`."""
        answers = yield Stage("train", dict.fromkeys(request.cohort, request.to_message()))
        parts = slices(request.blocks)
        total, weight = np.zeros(sum(request.blocks.values())), 0.0
        by_site = {answer.site: answer for answer in answers}
        for site in sorted(request.cohort):
            try:
                answer = by_site.get(site, Answer(site, SiteFailure("no_answer", "none came")))
                reply = TrainReply.from_message(answered(answer), request)
            except MessageError as error:
                record.left_out[site] = f"nonsense: {error}"
            except ProtocolError as error:
                record.left_out[site] = str(error)
            else:
                for name, part in parts.items():
                    factor = 1.0 if name in PLAIN_SUMS else reply.weight
                    total[part] += np.float64(factor) * reply.vector[part]
                weight += reply.weight
        return Aggregate(total, weight)


class PlainSiteAggregation:
    """The reply holds the site's vector as it is."""

    name: ClassVar[str] = "plain"

    def answer(
        self,
        message: Message,
        contribute: Callable[[TrainRequest, SecureCohort | None], Contribution],
    ) -> Message:
        """See :class:`SiteAggregation`."""
        request = TrainRequest.from_message(message)
        contribution = contribute(request, None)
        reply = TrainReply(
            request.plan.run_id, request.round_number, contribution.vector, contribution.weight
        )
        return reply.to_message()


def answered(answer: Answer) -> Message:
    """The message that an answer holds, whatever it says.

    Raises:
        RefusedError: The site refused.
        ProtocolError: The engine has no message of that site.
    """
    outcome = answer.outcome
    if isinstance(outcome, SiteFailure):
        raise ProtocolError(f"{outcome.reason}: {outcome.detail}")
    if outcome.kind == "refusal":
        refusal = Refusal.from_message(outcome)
        raise RefusedError(refusal.reason, f"refused: {refusal.reason}: {refusal.detail}")
    return outcome
