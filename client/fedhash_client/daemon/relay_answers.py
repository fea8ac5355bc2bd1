"""Bytes of a relay's frame in, bytes of the answer out: the whole of a site's part in training.

No socket is seen here. Rules:

1. Whatever comes, the answer is a message: a reply, or a refusal that names the rule.
2. A frame is at most as long as a message for the largest model that the site's file allows.
3. One frame is decoded and answered at a time: two large messages are never unpacked at once.
4. The kind of message names the aggregation (``train`` is plain, all else secure), and the site's
   own file says which it takes part in: ``other_aggregation``.
5. An agent is made for the plan of each request: agreement, memory of the rounds and aggregation
   are the site's own and stay, only the trainer follows the model that was asked for.

    >>> answers = RelayAnswers.of_site(settings, agreement)
    >>> answers.answer(frame)
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from threading import Lock

from fedhash.agreement import Agreement
from fedhash.errors import MessageError, RefusedError
from fedhash.rounds.aggregation import Contribution, PlainSiteAggregation, SiteAggregation
from fedhash.rounds.messages import Message
from fedhash.rounds.site import SiteAgent, answer_or_refuse
from fedhash.rounds.site_state import FileSiteState
from fedhash.rounds.training_messages import Refusal, TrainRequest, largest_message_bytes
from fedhash.secagg.floors import SecureCohort
from fedhash.secagg.opened_rounds import FileOpenedRounds
from fedhash.secagg.site import SecureSiteAggregation
from fedhash_client.daemon.training import Trainers
from fedhash_client.daemon.training_seed import training_seed
from fedhash_client.settings import SiteSettings
from fedhash_client.site_identity import site_identity

__all__ = ["RelayAnswers"]

_MOST_COUNTED = 100  # reasons and kinds that the counters tell apart

_log = logging.getLogger(__name__)


def _always() -> bool:
    return True


class RelayAnswers:
    """Answers the frames of one site.

    Attributes:
        max_frame_bytes: Longer frames need not be read at all.
        trainers: Of the models that are asked for.
        counts: How many answers of which kind; refusals by their reason (``refusal: stale_round``).

    Args:
        site: The site's name.
        agreement: What it signed.
        aggregations: By name, those that the site takes part in.
        trainers: Its data.
        state: Its memory between rounds.
        max_frame_bytes: See above.
    """

    def __init__(
        self,
        site: str,
        agreement: Agreement,
        aggregations: dict[str, SiteAggregation],
        trainers: Trainers,
        state: FileSiteState,
        max_frame_bytes: int,
    ) -> None:
        self.max_frame_bytes = max_frame_bytes
        self.trainers = trainers
        self.counts: Counter[str] = Counter()
        self._site = site
        self._agreement = agreement
        self._aggregations = aggregations
        self._state = state
        self._one_at_a_time = Lock()

    @classmethod
    def of_site(
        cls, site_file: Path, settings: SiteSettings, agreement: Agreement, state_folder: Path
    ) -> RelayAnswers:
        """The answers of a site, by its file.

        Raises:
            ConfigurationError: Secure aggregation is allowed and the site has no identity, or
                another one than the agreement lists.
            StorageError: The state folder cannot be written.
        """
        seed = training_seed(state_folder / "training.seed")
        aggregations: dict[str, SiteAggregation] = {}
        if "plain" in settings.training.aggregations:
            aggregations["plain"] = PlainSiteAggregation()
        if "secure" in settings.training.aggregations:
            aggregations["secure"] = SecureSiteAggregation(
                settings.name,
                agreement,
                site_identity(site_file, settings, agreement),
                FileOpenedRounds(state_folder / "opened"),
                seed,
            )
        return cls(
            settings.name,
            agreement,
            aggregations,
            Trainers(settings, agreement, state_folder, seed),
            FileSiteState(state_folder / "rounds"),
            largest_message_bytes(settings.training.largest_model_parameters),
        )

    def answer(self, frame: bytes, still_wanted: Callable[[], bool] = _always) -> bytes:
        """Answer one frame.

        Args:
            frame: From a peer that nobody trusts.
            still_wanted: Whether the peer still waits; asked before and after what takes long.
        """
        with self._one_at_a_time:
            reply = self._reply(frame, still_wanted)
            name = reply.kind
            if name == "refusal":
                refusal = Refusal.from_message(reply)
                name = f"refusal: {refusal.reason}"
                _log.warning("refused: %s: %s", refusal.reason, refusal.detail)
            if name in self.counts or len(self.counts) < _MOST_COUNTED:
                self.counts[name] += 1
            return reply.encode()

    def forget_data(self) -> None:
        """Drop all that was made of the data, here and in `prepared/`; waits for a running round.

        Raises:
            StorageError: The operating system refuses.
        """
        with self._one_at_a_time:
            self.trainers.forget()

    def _reply(self, frame: bytes, still_wanted: Callable[[], bool]) -> Message:
        if not still_wanted():
            return Refusal("abandoned", "nobody waits for the answer any more").to_message()
        try:
            message = Message.decode(frame, max_bytes=self.max_frame_bytes)
        except MessageError as error:
            return Refusal("bad_message", str(error)).to_message()

        def answer() -> Message:
            aggregation = self._aggregation(message.kind)

            def contribute(request: TrainRequest, cohort: SecureCohort | None) -> Contribution:
                trainer = self.trainers.of(request.plan.settings.model, still_wanted)
                agent = SiteAgent(self._site, self._agreement, trainer, self._state, aggregation)
                contribution = agent.contribute(request, cohort)
                _log.info("trained round %d of run %s", request.round_number, request.plan.run_id)
                return contribution

            return aggregation.answer(message, contribute)

        return answer_or_refuse(self._site, answer)

    def _aggregation(self, kind: str) -> SiteAggregation:
        name = "plain" if kind == "train" else "secure"
        if name not in self._aggregations:
            allowed = " and ".join(sorted(self._aggregations))
            raise RefusedError(
                "other_aggregation",
                f"the request is of {name} aggregation, this site takes part in {allowed} only; "
                "its own file decides, by training.aggregations",
            )
        return self._aggregations[name]
