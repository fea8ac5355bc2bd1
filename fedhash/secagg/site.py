"""The site's half of secure aggregation: it trusts the coordinator to carry messages, no more.

A request is refused, by a typed reply that names the rule, unless:

1. it belongs to a round for which this site has live secrets                         ``no_session``
2. each stage is asked for once and in its order                                     ``wrong_stage``
3. the roster shows this site's own keys, as it advertised them                     ``foreign_keys``
4. all sites of the roster are in the agreement, with keys that they
   signed for this run and round                                 ``unknown_site``, ``bad_signature``
5. the roster has at least the agreement's smallest cohort, never
   fewer than three sites                                                             ``bad_cohort``
6. degree and threshold are those that the agreement gives                       ``other_threshold``
7. the vector's layout in the ring is the site's own                                ``other_layout``
8. enough sites shared                                                           ``too_few_sharers``
9. enough neighbours sealed shares that open in this session;
   replayed keys fail here                                                     ``unreadable_shares``
10. enough sites survived, among them this one and enough of the
   neighbours whose shares it opened                                           ``too_few_survivors``
11. a round that was opened before is opened for the same task and sites and
   with the same vector of this site, and no round before it is              ``opened_otherwise``
12. a round whose noise the sites share has this site's share of it            ``unsound_privacy``

Rule 12 is held against the site's own training, after it. Shared noise is added to the integers, so
a round that is asked for again has another vector, and by rule 11 it is not opened twice.

Rules 1 and 2 give each neighbour's secrets one fate: this site opens its share of the seed or its
share of the key, never both. Secrets live in memory only; a site that restarts drops out of the
round, and the others recover its masks. What enough means is derived in `fedhash.secagg.graph`.

    >>> site = SecureSiteAggregation("hospital-a", agreement, identity, opened, seed=7)
    >>> site.answer(message, contribute).kind
    'keys'
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedhash.agreement import Agreement
from fedhash.errors import MessageError, ProtocolError, RefusedError
from fedhash.randomness import numpy_stream
from fedhash.rounds.aggregation import Contribution
from fedhash.rounds.messages import Message
from fedhash.rounds.training_messages import TrainRequest
from fedhash.secagg.asked import Digests, digests
from fedhash.secagg.encoding import round_encoding
from fedhash.secagg.fixed_point import FixedPoint
from fedhash.secagg.floors import SecureCohort, secure_cohort, smallest_cohort, smallest_sum
from fedhash.secagg.graph import plan_graph
from fedhash.secagg.identity import SiteIdentity, verify_signature
from fedhash.secagg.key_agreement import fingerprint
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
from fedhash.secagg.opened_rounds import OpenedRound, OpenedRounds
from fedhash.secagg.packing import Words, pack
from fedhash.secagg.roster import KeyRoster, RoundKeys, SealedShares
from fedhash.secagg.round_secrets import RoundSecrets

__all__ = ["SecureSiteAggregation"]

_log = logging.getLogger(__name__)
_Round = tuple[str, int]


@dataclass(frozen=True, eq=False)
class _Masked:
    """A round whose vector this site has given, under masks."""

    secrets: RoundSecrets
    sharers: tuple[str, ...]
    task: str
    vector: str


class SecureSiteAggregation:
    """Answers the four stages; see the module's rules."""

    name: ClassVar[str] = "secure"

    def __init__(
        self,
        site: str,
        agreement: Agreement,
        identity: SiteIdentity,
        opened: OpenedRounds,
        seed: int,
    ) -> None:
        """Keep what the site needs.

        Args:
            site: The site's name in the agreement.
            agreement: Holds the floors, and every site's public identity.
            identity: The site's own.
            opened: Remembers opened rounds over restarts.
            seed: Of the stochastic rounding, which hides nothing: a round that is asked for again
                gives the same vector. Keys and masks come from the operating system.
        """
        self._site = site
        self._agreement = agreement
        self._terms = agreement.secure_aggregation
        self._identity = identity
        self._opened = opened
        self._seed = seed
        self._advertised: dict[_Round, RoundSecrets] = {}
        self._shared: dict[_Round, RoundSecrets] = {}
        self._masked: dict[_Round, _Masked] = {}

    def answer(
        self,
        message: Message,
        contribute: Callable[[TrainRequest, SecureCohort], Contribution],
    ) -> Message:
        """See :class:`fedhash.rounds.aggregation.SiteAggregation`."""
        if message.kind == "advertise":
            return self._advertise(AdvertiseRequest.from_message(message))
        if message.kind == "share":
            return self._share(ShareRequest.from_message(message))
        if message.kind == "mask":
            return self._mask(MaskRequest.from_message(message), digests(message), contribute)
        if message.kind == "unmask":
            return self._unmask(UnmaskRequest.from_message(message))
        if message.kind == "train":
            raise RefusedError(
                "other_aggregation",
                "the request asks for a vector in the clear, this site gives masked ones only",
            )
        raise MessageError(f"a message of kind {message.kind!r} is no stage of a round")

    def _advertise(self, request: AdvertiseRequest) -> Message:
        for rounds in (self._advertised, self._shared, self._masked):
            rounds.clear()  # a new attempt: what was under way can never be opened here again
        keys = self._new_secrets(request.run_id, request.round_number)
        return KeysReply(request.run_id, request.round_number, keys).to_message()

    def _share(self, request: ShareRequest) -> Message:
        shares = self._join(request.run_id, request.round_number, request.roster)
        session = request.roster.session(request.run_id, request.round_number).hex()
        return SharesReply(request.run_id, request.round_number, session, shares).to_message()

    def _mask(
        self,
        request: MaskRequest,
        of_request: Digests,
        contribute: Callable[[TrainRequest, SecureCohort], Contribution],
    ) -> Message:
        train = request.train
        this_round = (train.plan.run_id, train.round_number)
        secrets = self._live(self._shared, this_round, request.session)
        encoding = self._checked_encoding(request, secrets)
        self._receive(request, secrets)
        masks = secrets.masks(request.sharers, of_request.asked)
        cohort = secure_cohort(len(secrets.roster.sites), self._agreement)
        contribution = contribute(train, cohort)
        rng = numpy_stream(self._seed, "stochastic rounding", self._site, *this_round)
        words = encoding.encode(
            contribution.vector, min(contribution.weight, encoding.largest_weight), rng
        )
        _add_noise(words, contribution, encoding, train)
        own = fingerprint(words.view(np.uint8), b"", bytes.fromhex(of_request.task), self._site)
        add_masks(words, masks)
        self._shared.clear()
        self._masked = {
            this_round: _Masked(secrets, request.sharers, of_request.task, own.tobytes().hex())
        }
        following = None
        if train.round_number < train.plan.settings.rounds:
            following = self._new_secrets(train.plan.run_id, train.round_number + 1)
        masked = pack(words, encoding.ring_bits)
        tag = fingerprint(masked, secrets.session, of_request.asked, self._site)
        return MaskedReply(*this_round, request.session, masked, tag, following).to_message()

    def _unmask(self, request: UnmaskRequest) -> Message:
        this_round = (request.run_id, request.round_number)
        masked = self._masked.get(this_round)
        if masked is None or masked.secrets.session.hex() != request.session:
            raise self._no_session(this_round)
        self._check_survivors(request, masked)
        opened = OpenedRound(request.round_number, request.survivors, masked.task, masked.vector)
        self._check_opened(request.run_id, opened)
        self._opened.keep(request.run_id, opened)
        del self._masked[this_round]
        following, refusal = None, None
        if request.following is not None:
            try:
                following = self._join(request.run_id, request.round_number + 1, request.following)
            except RefusedError as error:
                refusal = f"{error.reason}: {error}"[:500]
                _log.warning("site %s refuses the next round's keys: %s", self._site, refusal)
        owners, shares = masked.secrets.open(request.survivors)
        return UnmaskedReply(
            *this_round, request.session, owners, shares, following, refusal
        ).to_message()

    def _new_secrets(self, run_id: str, round_number: int) -> RoundKeys:
        secrets = RoundSecrets(self._site, self._identity, run_id, round_number)
        self._advertised = {(run_id, round_number): secrets}
        return secrets.public

    def _join(self, run_id: str, round_number: int, roster: KeyRoster) -> SealedShares:
        """Rules 1 to 6, then the site's shares."""
        secrets = self._live(self._advertised, (run_id, round_number), session=None)
        self._check_roster(secrets, roster)
        shares = secrets.share(roster)
        self._advertised.clear()
        self._shared = {(run_id, round_number): secrets}
        return shares

    def _live(
        self, rounds: dict[_Round, RoundSecrets], this_round: _Round, session: str | None
    ) -> RoundSecrets:
        secrets = rounds.get(this_round)
        if secrets is None or (session is not None and secrets.session.hex() != session):
            raise self._no_session(this_round)
        return secrets

    def _no_session(self, this_round: _Round) -> RefusedError:
        run_id, number = this_round
        if any(this_round in rounds for rounds in (self._advertised, self._shared, self._masked)):
            return RefusedError(
                "wrong_stage",
                f"this stage of round {number} of {run_id!r} is not the one that comes next here; "
                "each is answered once, in its order and in one session",
            )
        return RefusedError(
            "no_session",
            f"this site has no secrets for round {number} of {run_id!r}: they were never made, "
            "used up, or lost in a restart; begin the round with new keys",
        )

    def _check_roster(self, secrets: RoundSecrets, roster: KeyRoster) -> None:
        floor = smallest_cohort(self._agreement)
        if len(roster.sites) < floor:
            raise RefusedError(
                "bad_cohort", f"the roster has {len(roster.sites)} sites, at least {floor} must be"
            )
        if (
            self._site not in roster.sites
            or roster.keys_of(self._site) != secrets.public.keys.tobytes()
        ):
            raise RefusedError(
                "foreign_keys", f"the roster does not show the keys that {self._site!r} sent"
            )
        try:
            graph = plan_graph(len(roster.sites), self._terms)
        except ProtocolError as error:
            raise RefusedError("other_threshold", str(error)) from error
        if (roster.degree, roster.threshold) != (graph.degree, graph.threshold):
            raise RefusedError(
                "other_threshold",
                f"the request asks for {roster.degree} neighbours and the threshold "
                f"{roster.threshold}, the agreement gives {graph.degree} and {graph.threshold} "
                f"for {len(roster.sites)} sites",
            )
        for site, signature in zip(roster.sites, roster.signatures, strict=True):
            if site not in self._agreement.sites:
                raise RefusedError("unknown_site", f"{site!r} is not in the agreement")
            verify_signature(
                self._agreement.sites[site],
                signature.tobytes(),
                RoundKeys.signed_text(
                    secrets.run_id, secrets.round_number, site, roster.keys_of(site)
                ),
            )

    def _checked_encoding(self, request: MaskRequest, secrets: RoundSecrets) -> FixedPoint:
        plan = request.train.plan
        encoding = round_encoding(plan, request.train.blocks, self._terms)
        if encoding.digest() != request.encoding_digest or not (
            set(secrets.roster.sites) <= set(plan.sites)
        ):
            raise RefusedError(
                "other_layout",
                f"the request's ring layout is {request.encoding_digest[:12]}, the agreement and "
                f"the round give {encoding.digest()[:12]} over {len(plan.sites)} sites",
            )
        return encoding

    def _receive(self, request: MaskRequest, secrets: RoundSecrets) -> None:
        sites, sharers = secrets.roster.sites, request.sharers
        floor = smallest_sum(len(sites), self._agreement)
        around = set(secrets.neighbours) & set(sharers)
        if (
            not set(sharers) <= set(sites)
            or self._site not in sharers
            or len(sharers) < floor
            or len(around) < secrets.roster.threshold
            or request.sealed.shape[1] != secrets.roster.degree
        ):
            raise RefusedError(
                "too_few_sharers",
                f"{len(sharers)} sites shared, {len(around)} of them neighbours; at least {floor} "
                f"of the roster and {secrets.roster.threshold} neighbours must have, "
                f"and {self._site!r} itself",
            )
        secrets.receive(
            {
                sender: request.sealed[sharers.index(sender), secrets.rows[sender]]
                for sender in sorted(around)
            }
        )
        if len(secrets.readable) < secrets.roster.threshold:
            raise RefusedError(
                "unreadable_shares",
                f"only {len(secrets.readable)} neighbours sealed shares for this site in this "
                f"session, {secrets.roster.threshold} must have",
            )

    def _check_survivors(self, request: UnmaskRequest, masked: _Masked) -> None:
        survivors, secrets = set(request.survivors), masked.secrets
        floor = smallest_sum(len(secrets.roster.sites), self._agreement)
        around = survivors & secrets.readable  # one check for both, see ADR 8
        if (
            not survivors <= set(masked.sharers)
            or self._site not in survivors
            or len(survivors) < floor
            or len(around) < secrets.roster.threshold
        ):
            raise RefusedError(
                "too_few_survivors",
                f"{len(survivors)} sites are said to have survived, {len(around)} of them "
                f"neighbours whose shares this site holds; at least {floor} of those that shared "
                f"and {secrets.roster.threshold} such neighbours must have, and {self._site!r}",
            )

    def _check_opened(self, run_id: str, opened: OpenedRound) -> None:
        before = self._opened.newest(run_id)
        if before is None or opened.round_number > before.round_number or opened == before:
            return
        raise RefusedError(
            "opened_otherwise",
            f"this site has opened the sum of round {before.round_number} over "
            f"{len(before.survivors)} sites; an earlier round, or the same one over other sites, "
            "for another request or with other data here, would show a difference of sums",
        )


def _add_noise(
    words: Words, contribution: Contribution, encoding: FixedPoint, train: TrainRequest
) -> None:
    """Add the site's share of the noise, exactly where the round asks for one.

    Raises:
        RefusedError: There is none, or one that nobody asked for.
    """
    noise, update = contribution.noise, encoding.blocks[0]
    asked = (update.length,) if train.plan.settings.privacy.shares_noise else None
    found = None if noise is None else noise.shape
    if found != asked:
        raise RefusedError(
            "unsound_privacy",
            f"this site's training brought noise of the shape {found}, the round asks for {asked}; "
            "nothing was sent",
        )
    if noise is not None:
        words[: update.length] += noise.astype(words.dtype)  # modulo the ring, and never clipped
