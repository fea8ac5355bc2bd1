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
import secrets
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from threading import Lock

from fedhash.agreement import Agreement
from fedhash.configuration import problem_at
from fedhash.errors import ConfigurationError, MessageError, Problem, RefusedError, StorageError
from fedhash.private_file import write_private_file
from fedhash.rounds.aggregation import Contribution, PlainSiteAggregation, SiteAggregation
from fedhash.rounds.messages import Message
from fedhash.rounds.site import SiteAgent, answer_or_refuse
from fedhash.rounds.site_state import FileSiteState
from fedhash.rounds.training_messages import Refusal, TrainRequest, largest_message_bytes
from fedhash.secagg.floors import SecureCohort
from fedhash.secagg.identity import SiteIdentity
from fedhash.secagg.opened_rounds import FileOpenedRounds
from fedhash.secagg.site import SecureSiteAggregation
from fedhash_client.daemon.training import Trainers
from fedhash_client.settings import SiteSettings

__all__ = ["RelayAnswers", "training_seed"]

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
                _identity(site_file, settings, agreement),
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


def training_seed(path: Path) -> int:
    """The site's fixed seed of batches and rounding, made at the first call.

    It hides nothing: privacy's noise, masks and keys come from the operating system each time. It
    stays the same so that a round that is asked for again has the same answer.

    Raises:
        ConfigurationError: The file holds no number.
        StorageError: The operating system refuses it.
    """
    if not path.exists():
        write_private_file(path, f"{secrets.randbits(63)}\n".encode())
    try:
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        raise StorageError(error, path) from error
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        message = "expected one whole number; remove the file, and runs under way begin anew"
        raise ConfigurationError([Problem(path, None, message)])
    return int(text)


def _identity(site_file: Path, settings: SiteSettings, agreement: Agreement) -> SiteIdentity:
    if settings.network is None:
        message = (
            "training.aggregations has secure, and without a section network the site has no "
            "identity to sign with; add network, as fedhash-site init writes it"
        )
        raise ConfigurationError([problem_at(site_file, ("training",), message)])
    identity = SiteIdentity.load(settings.network.identity)
    listed = agreement.sites.get(settings.name)
    if listed != identity.public_hex:
        found = f"lists {listed}" if listed else "does not list this site"
        message = (
            f"the agreement {found}, the key in network.identity is {identity.public_hex}; fetch "
            "the agreement that names this key, or use the key that was enrolled"
        )
        raise ConfigurationError([problem_at(site_file, ("network", "identity"), message)])
    return identity
