"""Sites of a secure sum without any training: each holds a fixed vector.

Rounding is reproducible, so the right sum is known in integers, to the last bit. A test drives both
halves of the protocol by hand, message by message, and may lose, repeat, reorder or damage whatever
passes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple

import numpy as np
from small_federation import round_settings

from fedhash.agreement import Agreement
from fedhash.errors import ProtocolError, RefusedError
from fedhash.learning.loss import Margins
from fedhash.randomness import numpy_stream
from fedhash.rounds.aggregation import Aggregate, Answers, Contribution, Stage, SumRecord
from fedhash.rounds.engine import Answer
from fedhash.rounds.messages import Message
from fedhash.rounds.training_messages import Refusal, RunPlan, TrainRequest, reply_blocks
from fedhash.secagg.coordinator import SecureAggregation
from fedhash.secagg.encoding import round_encoding
from fedhash.secagg.fixed_point import DecodedSum
from fedhash.secagg.floors import SecureCohort
from fedhash.secagg.graph import plan_graph
from fedhash.secagg.identity import SiteIdentity
from fedhash.secagg.messages import (
    AdvertiseRequest,
    KeysReply,
    MaskRequest,
    ShareRequest,
    SharesReply,
    UnmaskRequest,
)
from fedhash.secagg.opened_rounds import MemoryOpenedRounds
from fedhash.secagg.packing import word_dtype
from fedhash.secagg.roster import KeyRoster, RoundKeys, SealedShares
from fedhash.secagg.site import SecureSiteAggregation
from fedhash.secagg.terms import SecureAggregationTerms

MODEL_SIZE = 6
TERMS = SecureAggregationTerms(largest_update=1000.0, largest_loss=1000.0, largest_weight=8.0)


def names(count: int) -> tuple[str, ...]:
    return tuple(f"site-{i:02}" for i in range(count))


def consortium(
    count: int, terms: SecureAggregationTerms = TERMS, smallest_cohort: int = 3
) -> tuple[Agreement, dict[str, SiteIdentity]]:
    """An agreement with the roster of so many sites, and their identities."""
    identities = {site: SiteIdentity.generate() for site in names(count)}
    agreement = Agreement(
        name="test",
        findings=("no_finding", "effusion"),
        modalities=("report",),
        code_bits=16,
        smallest_cohort=smallest_cohort,
        sites={site: identity.public_hex for site, identity in identities.items()},
        secure_aggregation=terms,
    )
    return agreement, identities


def plan_of(agreement: Agreement, rounds: int = 3) -> RunPlan:
    settings = round_settings(
        rounds=rounds, aggregation="secure", learning={"control_variates": False}
    )
    return RunPlan(
        run_id="run-1",
        agreement_digest=agreement.digest(),
        layout_digest="0" * 64,
        sites=tuple(sorted(agreement.sites)),
        settings=settings,
    )


def train_request(
    agreement: Agreement, round_number: int = 1, cohort: Sequence[str] = (), rounds: int = 3
) -> TrainRequest:
    plan = plan_of(agreement, rounds)
    return TrainRequest(
        plan=plan,
        round_number=round_number,
        cohort=tuple(cohort) or plan.sites,
        counted={},
        model=np.zeros(MODEL_SIZE, np.float32),
        margins=Margins.constant(2, 0.2),
        control=None,
    )


@dataclass
class Site:
    """The site's half around a fixed contribution; counts how often it trained."""

    name: str
    aggregation: SecureSiteAggregation
    contribution: Contribution
    trained: int = 0

    def handle(self, message: Message) -> Message:
        """As `SiteAgent.handle`."""
        try:
            return self.aggregation.answer(message, self._contribute)
        except RefusedError as error:
            return Refusal(error.reason, str(error)).to_message()
        except ProtocolError as error:
            return Refusal("bad_message", str(error)).to_message()

    def _contribute(self, request: TrainRequest, cohort: SecureCohort) -> Contribution:
        self.trained += 1
        return self.contribution


def vector_of(place: int) -> np.ndarray:
    """Another vector for each place."""
    length = sum(reply_blocks(plan_of(consortium(3)[0]), 1, MODEL_SIZE, 2).values())
    return ((np.arange(length) * (place + 1) - 3 * place) % 41 - 20).astype(np.float32) / 2


class Summed(NamedTuple):
    """An aggregate and its record."""

    total: np.ndarray
    weight: float
    left_out: dict[str, str]
    facts: dict[str, str | int | float]
    notes: dict[str, str]


@dataclass
class Federation:
    """Sites, and the coordinator's half that outlives its rounds."""

    agreement: Agreement
    sites: dict[str, Site]
    coordinator: SecureAggregation
    rounds: int = 3
    stages: list[str] = field(default_factory=list)
    record: SumRecord = field(default_factory=SumRecord)

    @classmethod
    def of(
        cls,
        count: int,
        terms: SecureAggregationTerms = TERMS,
        rounds: int = 3,
        smallest_cohort: int = 3,
    ) -> Federation:
        agreement, identities = consortium(count, terms, smallest_cohort)
        sites = {
            site: Site(
                site,
                SecureSiteAggregation(
                    site, agreement, identities[site], MemoryOpenedRounds(), seed=7
                ),
                Contribution(vector_of(place), float(place % 8 + 1)),
            )
            for place, site in enumerate(identities)
        }
        return cls(agreement, sites, SecureAggregation(agreement), rounds)

    def expected(self, names: Sequence[str], number: int) -> DecodedSum:
        """The sum in integers, without any mask: what the protocol must give to the last bit."""
        plan = plan_of(self.agreement, self.rounds)
        encoding = round_encoding(
            plan, reply_blocks(plan, number, MODEL_SIZE, 2), self.agreement.secure_aggregation
        )
        total = np.zeros(encoding.length, word_dtype(encoding.ring_bits))
        for name in names:
            rng = numpy_stream(7, "stochastic rounding", name, plan.run_id, number)
            contribution = self.sites[name].contribution
            weight = min(contribution.weight, encoding.largest_weight)
            total += encoding.encode(contribution.vector, weight, rng)
        return encoding.decode(total)

    def round(
        self,
        number: int,
        deliver: Callable[[Stage], Answers] | None = None,
        cohort: Sequence[str] = (),
    ) -> Summed:
        """One round; `deliver` carries the messages of a stage, everything by default."""
        request = train_request(self.agreement, number, cohort, self.rounds)
        self.record = SumRecord()
        steps = self.coordinator.aggregate(request, self.record)
        aggregate = drive(steps, self._noting(deliver or self.ask))
        return Summed(aggregate.total, aggregate.weight, **asdict(self.record))

    def ask(self, stage: Stage) -> list[Answer]:
        """Carry each request and each reply, in their byte forms."""
        return [
            Answer(name, carried(self.sites[name].handle(carried(message))))
            for name, message in stage.requests.items()
        ]

    def _noting(self, deliver: Callable[[Stage], Answers]) -> Callable[[Stage], Answers]:
        def noted(stage: Stage) -> Answers:
            self.stages.append(stage.name)
            return deliver(stage)

        return noted


class CheatingCoordinator:
    """Drives one round by hand, and may send anything to anyone; the sites are honest."""

    def __init__(
        self, count: int = 5, smallest_cohort: int = 3, terms: SecureAggregationTerms = TERMS
    ) -> None:
        self.federation = Federation.of(count, terms, smallest_cohort=smallest_cohort)
        self.agreement = self.federation.agreement
        self.sites = names(count)
        self.graph = plan_graph(count, self.agreement.secure_aggregation)

    def send(self, site: str, message: Message) -> Message:
        return self.federation.sites[site].handle(message)

    def refusal(self, site: str, message: Message) -> str:
        """The rule that the site names; it must not have trained or revealed anything."""
        answer = self.send(site, message)
        assert answer.kind == "refusal", answer.kind
        assert not answer.arrays
        return Refusal.from_message(answer).reason

    def advertise(self, number: int = 1) -> dict[str, RoundKeys]:
        ask = AdvertiseRequest("run-1", number).to_message()
        return {s: KeysReply.from_message(self.send(s, ask)).keys for s in self.sites}

    def roster(self, keys: dict[str, RoundKeys]) -> KeyRoster:
        graph = plan_graph(len(keys), self.agreement.secure_aggregation)
        return KeyRoster(
            tuple(sorted(keys)),
            graph.degree,
            graph.threshold,
            np.stack([keys[site].keys for site in sorted(keys)]),
            np.stack([keys[site].signature for site in sorted(keys)]),
        )

    def share(self, roster: KeyRoster, number: int = 1) -> dict[str, SealedShares]:
        ask = ShareRequest("run-1", number, roster).to_message()
        return {
            site: SharesReply.from_message(self.send(site, ask), roster.degree).shares
            for site in roster.sites
        }

    def mask_request(
        self, roster: KeyRoster, shares: dict[str, SealedShares], number: int = 1
    ) -> MaskRequest:
        plan = plan_of(self.agreement)
        request = train_request(self.agreement, number)
        digest = round_encoding(plan, request.blocks, TERMS).digest()
        return MaskRequest(
            request,
            roster.session("run-1", number).hex(),
            tuple(sorted(shares)),
            digest,
            np.stack([shares[site].sealed for site in sorted(shares)]),
        )

    def unmask_request(self, roster: KeyRoster, survivors: tuple[str, ...]) -> UnmaskRequest:
        return UnmaskRequest("run-1", 1, roster.session("run-1", 1).hex(), survivors, None)

    def up_to_share(
        self, keys: dict[str, RoundKeys] | None = None, number: int = 1
    ) -> tuple[KeyRoster, MaskRequest]:
        """`keys` are those that the sites sent, if they did."""
        roster = self.roster(keys or self.advertise(number))
        return roster, self.mask_request(roster, self.share(roster, number), number)

    def up_to_mask(self, **changes: object) -> KeyRoster:
        """`changes` are made to the request to train."""
        roster, request = self.up_to_share()
        request = replace(request, train=replace(request.train, **changes))
        for site in self.sites:
            assert self.send(site, request.to_message()).kind == "masked"
        return roster

    def up_to_unmask(self) -> None:
        roster = self.up_to_mask()
        for site in self.sites:
            ask = self.unmask_request(roster, self.sites).to_message()
            assert self.send(site, ask).kind == "unmasked"


def drive(
    steps: Generator[Stage, Answers, Aggregate], deliver: Callable[[Stage], Answers]
) -> Aggregate:
    """Run a coordinator's half to its end."""
    try:
        stage = next(steps)
        while True:
            stage = steps.send(deliver(stage))
    except StopIteration as done:
        aggregate: Aggregate = done.value
        return aggregate


def carried(message: Message) -> Message:
    """What arrives at the other end."""
    return Message.decode(message.encode(), max_bytes=1 << 24)


def with_header(message: Message, **changes: object) -> Message:
    """The same message with other header values."""
    return replace(message, header={**message.header, **changes})
