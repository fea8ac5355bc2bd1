"""The coordinator's half of secure aggregation: it learns one sum a round and nothing else.

1. In steady state a round has two exchanges, `mask` and `unmask`: they carry the keys and shares of
   the next round. The first round, and a round whose sites are not those that prepared it (a
   joiner, a site that came back, one that is gone), has two exchanges of its own before them.
2. A masked vector is added to the sum when it arrives and is not kept; beside it stand a few
   hundred bytes a pair of neighbours, and whatever an engine holds of answers that are ready.
3. A masked vector is added only with the fingerprint that stands for this vector and this request:
   a site that was asked for something else, by damage on the way, hid its vector under masks that
   nobody else has. The ring's two last words alone would let such a sum pass too often.
4. Shares are checked against their owner's commitment and reconstructed secrets against what the
   owner published, so a bad share is left out and never ends up in the sum.
5. The sum is exact over the sites whose vector arrived, or the round fails with a typed error;
   whatever happens, the next round starts from new keys.

    >>> aggregation = SecureAggregation(agreement)
    >>> steps = aggregation.aggregate(request, record)
    >>> stage = next(steps)                    # Stage("advertise", ...) in the first round
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedhash.agreement import Agreement
from fedhash.errors import CohortError, MessageError, ProtocolError
from fedhash.rounds.aggregation import Aggregate, Answers, Stage, SumRecord, answered
from fedhash.rounds.messages import Message
from fedhash.rounds.training_messages import TrainRequest
from fedhash.secagg.asked import digests
from fedhash.secagg.encoding import round_encoding
from fedhash.secagg.fixed_point import FixedPoint
from fedhash.secagg.floors import smallest_cohort, smallest_sum
from fedhash.secagg.graph import plan_graph
from fedhash.secagg.identity import verify_signature
from fedhash.secagg.key_agreement import (
    exchange,
    fingerprint,
)
from fedhash.secagg.masks import add_masks
from fedhash.secagg.messages import (
    AdvertiseRequest,
    KeysReply,
    MaskedReply,
    MaskRequest,
    ShareRequest,
    SharesReply,
    UnmaskedReply,
    UnmaskRequest,
)
from fedhash.secagg.opened_shares import OpenedShares, SetUp
from fedhash.secagg.packing import Words, add_packed, packed_bytes, word_dtype
from fedhash.secagg.roster import KEY_BYTES, KeyRoster, RoundKeys, SealedShares

__all__ = ["SecureAggregation"]

_T = TypeVar("_T")
_Steps = Generator[Stage, Answers, _T]


@dataclass(eq=False)
class _Sum:
    """A sum under masks."""

    words: Words
    asked: bytes
    survivors: list[str] = field(default_factory=list)
    following: dict[str, RoundKeys] = field(default_factory=dict)


class SecureAggregation:
    """Runs the stages of each round; see the module's rules."""

    name: ClassVar[str] = "secure"

    def __init__(self, agreement: Agreement) -> None:
        self._agreement = agreement
        self._terms = agreement.secure_aggregation
        self._prepared: SetUp | None = None

    def aggregate(self, request: TrainRequest, record: SumRecord) -> _Steps[Aggregate]:
        """See :class:`fedhash.rounds.aggregation.Aggregation`."""
        prepared, self._prepared = self._prepared, None
        pipelined = (
            prepared is not None
            and (prepared.run_id, prepared.round_number)
            == (request.plan.run_id, request.round_number)
            and prepared.sharers == request.cohort
        )
        record.facts["set_up"] = "with the round before" if pipelined else "exchanges of its own"
        if prepared is not None and pipelined:
            set_up = prepared
            self._note_graph(set_up.roster, record)
        else:
            set_up = yield from self._set_up(request, record)
        record.facts["shared"] = len(set_up.sharers)
        encoding = round_encoding(request.plan, request.blocks, self._terms)
        record.facts["ring_bits"] = encoding.ring_bits
        masked = yield from self._masked_sum(request, set_up, encoding, record)
        yield from self._unmask(request, set_up, masked, record)
        decoded = encoding.decode(masked.words)
        if encoding.tells_clipped:
            record.facts["clipped_values"] = decoded.clipped
        rounding_sd = encoding.rounding_sd(decoded.weight, len(masked.survivors))
        record.facts["rounding_sd"] = rounding_sd["update"]
        return Aggregate(decoded.vector, decoded.weight, rounding_sd)

    def _note_graph(self, roster: KeyRoster, record: SumRecord) -> None:
        graph = plan_graph(len(roster.sites), self._terms)
        record.facts.update(
            graph=graph.kind,
            degree=graph.degree,
            threshold=graph.threshold,
            sites=len(roster.sites),
            fewest_honest=graph.fewest_honest,
        )

    def _set_up(self, request: TrainRequest, record: SumRecord) -> _Steps[SetUp]:
        """The stages `advertise` and `share` as exchanges of their own."""
        run_id, number = request.plan.run_id, request.round_number
        ask = AdvertiseRequest(run_id, number).to_message()
        answers = yield Stage("advertise", dict.fromkeys(request.cohort, ask))

        def keys_of(site: str, message: Message) -> RoundKeys:
            reply = KeysReply.from_message(message)
            _check_round((reply.run_id, reply.round_number), (run_id, number))
            self._verify(run_id, number, site, reply.keys)
            return reply.keys

        offers = _accepted(answers, request.cohort, "advertise", record.left_out, keys_of)
        roster = self._roster(dict(offers))
        self._note_graph(roster, record)
        session = roster.session(run_id, number).hex()
        ask = ShareRequest(run_id, number, roster).to_message()
        answers = yield Stage("share", dict.fromkeys(roster.sites, ask))

        def shares_of(_: str, message: Message) -> SealedShares:
            reply = SharesReply.from_message(message, roster.degree)
            _check_round(
                (reply.run_id, reply.round_number, reply.session), (run_id, number, session)
            )
            return reply.shares

        shares = _accepted(answers, roster.sites, "share", record.left_out, shares_of)
        return SetUp(run_id, number, roster, dict(shares))

    def _masked_sum(
        self,
        request: TrainRequest,
        set_up: SetUp,
        encoding: FixedPoint,
        record: SumRecord,
    ) -> _Steps[_Sum]:
        """The stage `mask`: vectors are added as they arrive."""
        self._check_enough(set_up.sharers, set_up.roster, "shared", record.left_out)
        session = set_up.session.hex()
        sealed = np.stack([set_up.shares[site].sealed for site in set_up.sharers])
        ask = MaskRequest(request, session, set_up.sharers, encoding.digest(), sealed)
        message = ask.to_message()
        answers = yield Stage("mask", dict.fromkeys(set_up.sharers, message))
        words = np.zeros(encoding.length, word_dtype(encoding.ring_bits))
        masked = _Sum(words, digests(message).asked)
        this_round = (set_up.run_id, set_up.round_number, session)
        expected_bytes = packed_bytes(encoding.length, encoding.ring_bits)

        def reply_of(site: str, message: Message) -> MaskedReply:
            reply = MaskedReply.from_message(message, expected_bytes)
            _check_round((reply.run_id, reply.round_number, reply.session), this_round)
            expected = fingerprint(reply.masked, set_up.session, masked.asked, site)
            if reply.fingerprint.tobytes() != expected.tobytes():
                raise MessageError(
                    "the masked vector or the request for it was damaged on its way, so the "
                    "vector's masks would not come off"
                )
            return reply

        for site, reply in _accepted(answers, set_up.sharers, "mask", record.left_out, reply_of):
            add_packed(masked.words, reply.masked, encoding.ring_bits)
            masked.survivors.append(site)
            if reply.following is not None:
                masked.following[site] = reply.following
            del reply  # the vector must not stay until the next one is there
        masked.survivors.sort()
        record.facts["survived"] = len(masked.survivors)
        self._check_enough(masked.survivors, set_up.roster, "sent a masked vector", record.left_out)
        return masked

    def _unmask(
        self, request: TrainRequest, set_up: SetUp, masked: _Sum, record: SumRecord
    ) -> _Steps[None]:
        """The stage `unmask`: take the masks off, and keep what prepares the next round."""
        run_id, number, session = set_up.run_id, set_up.round_number, set_up.session.hex()
        following = self._following_roster(request, masked, record.notes)
        survivors = tuple(masked.survivors)
        ask = UnmaskRequest(run_id, number, session, survivors, following).to_message()
        answers = yield Stage("unmask", dict.fromkeys(survivors, ask))
        opened = OpenedShares(set_up, survivors)
        next_shares: dict[str, SealedShares] = {}

        def reply_of(site: str, message: Message) -> UnmaskedReply:
            reply = UnmaskedReply.from_message(message, following.degree if following else 1)
            _check_round(
                (reply.run_id, reply.round_number, reply.session), (run_id, number, session)
            )
            opened.take(site, reply)
            return reply

        for site, reply in _accepted(answers, survivors, "unmask", record.notes, reply_of):
            if reply.refusal is not None:
                # what is wrong with its own keys was noted before, and is why it refuses
                record.notes.setdefault(site, f"refuses the next round's keys: {reply.refusal}")
            if reply.following is not None and following is not None:
                next_shares[site] = reply.following
        add_masks(masked.words, opened.masks(masked.asked))
        if following is not None:
            self._prepared = SetUp(run_id, number + 1, following, next_shares)

    def _roster(self, offers: Mapping[str, RoundKeys]) -> KeyRoster:
        """The key roster of all sites that offered keys.

        Raises:
            CohortError: They are fewer than a secure sum takes.
        """
        floor = smallest_cohort(self._agreement)
        if len(offers) < floor:
            raise CohortError(f"{len(offers)} sites sent round keys, {floor} are needed")
        sites = tuple(sorted(offers))
        graph = plan_graph(len(sites), self._terms)
        return KeyRoster(
            sites,
            graph.degree,
            graph.threshold,
            np.stack([offers[site].keys for site in sites]),
            np.stack([offers[site].signature for site in sites]),
        )

    def _following_roster(
        self, request: TrainRequest, masked: _Sum, notes: dict[str, str]
    ) -> KeyRoster | None:
        offers: dict[str, RoundKeys] = {}
        for site, keys in masked.following.items():
            try:
                self._verify(request.plan.run_id, request.round_number + 1, site, keys)
            except ProtocolError as error:
                notes[site] = f"keys of the next round: {error}"
            else:
                offers[site] = keys
        try:
            return self._roster(offers)
        except ProtocolError:  # too few sites, or too few for any graph
            return None  # the next round begins with exchanges of its own, or the run is over

    def _verify(self, run_id: str, round_number: int, site: str, keys: RoundKeys) -> None:
        identity = self._agreement.sites.get(site)
        if identity is None:
            raise MessageError(f"{site!r} has no identity in the agreement")
        content = keys.keys.tobytes()
        probe = X25519PrivateKey.generate()
        for half in (content[: KEY_BYTES // 2], content[KEY_BYTES // 2 :]):
            exchange(probe, half)  # one key of low order would make every site refuse the roster
        text = RoundKeys.signed_text(run_id, round_number, site, content)
        verify_signature(identity, keys.signature.tobytes(), text)

    def _check_enough(
        self,
        sites: Sequence[str],
        roster: KeyRoster,
        what: str,
        left_out: Mapping[str, str],
    ) -> None:
        floor = smallest_sum(len(roster.sites), self._agreement)
        if len(sites) < floor:
            reasons = "; ".join(f"{site}: {why}" for site, why in sorted(left_out.items()))
            raise CohortError(
                f"{len(sites)} of {len(roster.sites)} sites {what}, at least {floor} must, so "
                f"nothing is opened; left out: {reasons or 'none'}"
            )


def _accepted(
    answers: Answers,
    asked: Sequence[str],
    stage: str,
    reasons: dict[str, str],
    read: Callable[[str, Message], _T],
) -> Iterator[tuple[str, _T]]:
    """Each asked site's first answer as `read` types it; why the others have none in `reasons`."""
    waiting = set(asked)
    for answer in answers:
        if answer.site not in waiting:
            continue
        waiting.remove(answer.site)
        try:
            typed = read(answer.site, answered(answer))
        except MessageError as error:
            reasons[answer.site] = f"{stage}: nonsense: {error}"
        except ProtocolError as error:
            reasons[answer.site] = f"{stage}: {error}"
        else:
            yield answer.site, typed
            del typed
        del answer  # with its vector, before the next one arrives
    reasons |= dict.fromkeys(sorted(waiting), f"{stage}: no_answer")


def _check_round(found: tuple[str | int, ...], expected: tuple[str | int, ...]) -> None:
    if found != expected:
        raise MessageError("the reply belongs to another run, round or session")
