"""A site's data and model behind one round of training.

1. Only a validated request trains: limits are the site agent's business (fedhash.rounds.site).
2. Each round draws from its own stream (seed, "training", run, site, round): a round that is asked
   for again gives the same reply, the same round of another run does not, and no site's draws
   depend on another's.
3. A round takes at most the agreement's `largest_local_steps`.
4. A site with `SitePrivacy` trains private rounds alone, and one without it none. A private round
   that is asked for again draws anew and is reserved anew: equal noise under two requests would
   show the difference of two gradients.
5. A site takes part in the private modes that it allows (`SitePrivacy.modes`). Noise that the sites
   share rests on trust in the others, so it has to be allowed by name.
6. In a round with margin statistics (`fedhash.privacy.margin_statistics`) they are made last, of
   the request's model with the layers that stay here, so that one reservation comes before all that
   reads a patient.
7. Studies that cannot train, such as one without a positive finding, are told to whoever builds the
   trainer, at the site: a round that was refused for one would tell the coordinator of a patient.

    >>> trainer = SiteTrainer("hospital-a", agreement, settings.model, prepared, seed=7)
    >>> agent = SiteAgent("hospital-a", agreement, trainer, MemorySiteState(), aggregation)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Int64

from fedhash.agreement import Agreement
from fedhash.errors import PrivacyError, RefusedError
from fedhash.learning.gradients import (
    GradientSource,
    NoPrivacy,
    check_labelled,
    check_modalities,
)
from fedhash.learning.local_training import LocalResult, train_locally
from fedhash.learning.loss import Loss
from fedhash.learning.losses import build_loss
from fedhash.learning.own_layers import own_places, with_own_layers
from fedhash.models.anchors import Anchors
from fedhash.models.hash_model import build_model
from fedhash.models.layout import Layout
from fedhash.models.prepared import PreparedStudies
from fedhash.models.settings import ModelSettings
from fedhash.privacy.margin_statistics import margin_statistics
from fedhash.privacy.noise import NoiseSource, SimulatedNoise
from fedhash.privacy.noise_share import noise_share
from fedhash.privacy.private_steps import PrivateSteps, SharedNoiseStep
from fedhash.privacy.settings import (
    DistributedPrivacySettings,
    NoPrivacySettings,
    PrivacySettings,
    PrivateMode,
    SitePrivacySettings,
)
from fedhash.randomness import torch_stream
from fedhash.rounds.training_messages import TrainRequest
from fedhash.secagg.encoding import round_encoding
from fedhash.secagg.floors import SecureCohort

__all__ = ["SitePrivacy", "SiteTrainer"]


@dataclass(frozen=True)
class SitePrivacy:
    """What a site needs to train under privacy.

    Attributes:
        noise: The noise source of a run and a round.
        reserve: Called with run, round and steps before any data is read; it writes down what is
            about to happen, or raises to refuse it (`fedhash.privacy.reservation`).
        modes: The `privacy.mode` of rounds that the site takes part in.
    """

    noise: Callable[[str, int], NoiseSource]
    reserve: Callable[[str, int, PrivateSteps | SharedNoiseStep], object]
    modes: tuple[PrivateMode, ...] = ("site",)


class SiteTrainer:
    """Trains on one site's studies.

    Attributes:
        model_settings: The model that is trained here.
        layout_digest: `Layout.digest()` of it.
        model_size: Its number of parameters d.
        patients: Number of patients that train.

    Args:
        privacy: None for a site that trains without privacy.

    Raises:
        DataError: There is no study, or one without a positive finding.
        ModelError: The studies' modalities are not the model's.
    """

    def __init__(
        self,
        site: str,
        agreement: Agreement,
        model_settings: ModelSettings,
        studies: PreparedStudies,
        seed: int,
        privacy: SitePrivacy | None = None,
    ) -> None:
        self.model_settings = model_settings
        self._site = site
        self._seed = seed
        self._privacy = privacy
        self._studies = studies
        self._sums = agreement.secure_aggregation
        self._most_steps = agreement.largest_local_steps
        self._anchors = Anchors.build(agreement)
        # any seed: each round starts from the model that the request brings
        self._model = build_model(
            model_settings, agreement.code_bits, seed=0, anchors=self._anchors
        )
        check_modalities(self._model, studies)
        check_labelled(studies)
        self._layout = Layout.of(self._model)
        self.layout_digest = self._layout.digest()
        self.model_size = self._layout.size
        self.patients = len(set(studies.patient_ids))

    def train(self, request: TrainRequest, carried: Mapping[str, np.ndarray]) -> LocalResult:
        """Train one round from the request's model.

        Args:
            request: Checked against the agreement.
            carried: From the site's last counted round; empty before its first.

        Raises:
            RefusedError: The request's privacy is not the site's, or `reserve` refuses the steps.
            PrivacyError: The model's towers would break the guarantee.
            ModelError: What is carried does not fit.
            DivergedError: The training left the finite numbers.
        """
        plan, settings = request.plan, request.plan.settings
        learning = settings.learning.under_drift(request.drift)
        self._layout.load(self._model, request.model)
        noise = self._noise(request)
        result = train_locally(
            self._model,
            self._studies,
            self._loss(request),
            learning,
            margins=request.margins,
            round_number=request.round_number,
            rounds_total=settings.rounds,
            shared_control=request.control,
            carried=carried,
            most_steps=self._most_steps,
            generator=torch_stream(
                self._seed, "training", plan.run_id, self._site, request.round_number
            ),
            source=self._source(request, noise),
        )
        own = own_places(self._model, learning)
        first = with_own_layers(request.model, own, carried)
        return self._with_statistics(result, request, noise, first)

    def shared_step(
        self, request: TrainRequest, cohort: SecureCohort | None
    ) -> tuple[LocalResult, Int64[np.ndarray, " d"]]:
        """Take the step of a round whose noise the sites share, at the request's model.

        Args:
            request: Checked against the agreement, `privacy.mode` distributed.
            cohort: The sites of the secure sum; None, which is refused, where there is no such sum.

        Returns:
            Minus the sum of the clipped gradients, and this site's share of the noise in integers.

        Raises:
            RefusedError: The site does not allow the mode, the cohort guarantees no noise, or
                `reserve` refuses the step.
            PrivacyError: The model's towers would break the guarantee.
        """
        plan, settings = request.plan, request.plan.settings
        asked, own = settings.privacy, self._allowed(settings.privacy)
        if own is None or not isinstance(asked, DistributedPrivacySettings) or cohort is None:
            raise RefusedError(
                "unsound_privacy",
                f"privacy.mode is {asked.mode}, and a step whose noise the sites share needs a "
                "secure sum",
            )
        encoding = round_encoding(plan, request.blocks, self._sums)
        try:
            share = noise_share(asked, encoding, cohort)
        except PrivacyError as error:  # it speaks of the request and the agreement alone
            raise RefusedError("unsound_privacy", str(error)) from error
        from fedhash.privacy.distributed import noised_step  # Opacus takes seconds to import

        self._layout.load(self._model, request.model)
        noise = own.noise(plan.run_id, request.round_number)
        result, added = noised_step(
            self._model,
            self._studies,
            self._loss(request),
            settings.learning,
            margins=request.margins,
            clip_norm=asked.clip_norm,
            share=share,
            noise=noise,
            reserve=lambda step: self._reserve(request, own, step),
        )
        return self._with_statistics(result, request, noise, request.model), added

    def _loss(self, request: TrainRequest) -> Loss:
        """The round's, for the request's model, which is loaded."""
        settings = request.plan.settings
        rounds_over = (request.round_number - 1) / settings.rounds
        return build_loss(settings.loss, self._anchors, rounds_over, self._model.prototypes)

    def _noise(self, request: TrainRequest) -> NoiseSource:
        """The round's noise; without privacy, what draws the studies of the statistics."""
        run, number = request.plan.run_id, request.round_number
        if self._privacy is None:
            return SimulatedNoise(self._seed, "margin statistics", run, self._site, number)
        return self._privacy.noise(run, number)

    def _with_statistics(
        self,
        result: LocalResult,
        request: TrainRequest,
        noise: NoiseSource,
        first: Float32[np.ndarray, " d"],
    ) -> LocalResult:
        """The same with the margin statistics of the first model, where the round has them."""
        settings = request.plan.settings
        schedule = settings.margin_schedule
        if schedule is None or not schedule.carries_statistics(request.round_number):
            return result
        self._layout.load(self._model, first)
        statistics = margin_statistics(
            self._model,
            self._studies,
            self._anchors,
            settings.loss.value("kappa"),
            noise=noise,
            noise_multiplier=schedule.noise_multiplier,
            largest=self._sums.largest_statistic,
        )
        return replace(result, statistics=statistics)

    def _reserve(
        self, request: TrainRequest, own: SitePrivacy, steps: PrivateSteps | SharedNoiseStep
    ) -> None:
        """Reserve the round's steps and its statistics, together."""
        schedule = request.plan.settings.margin_schedule
        if schedule is not None and schedule.carries_statistics(request.round_number):
            steps = replace(steps, statistics_noise_multiplier=schedule.noise_multiplier)
        own.reserve(request.plan.run_id, request.round_number, steps)

    def _source(self, request: TrainRequest, noise: NoiseSource) -> GradientSource:
        asked, own = request.plan.settings.privacy, self._allowed(request.plan.settings.privacy)
        if own is None:
            return NoPrivacy()
        if not isinstance(asked, SitePrivacySettings):
            raise RefusedError(
                "unsound_privacy", f"privacy.mode {asked.mode} has no noise of the site's own"
            )
        from fedhash.privacy.dp_sgd import SiteDpSgd  # Opacus takes seconds to import

        return SiteDpSgd(asked, noise, lambda steps: self._reserve(request, own, steps))

    def _allowed(self, asked: PrivacySettings) -> SitePrivacy | None:
        """What a round of this privacy uses here; None where it and the site have none."""
        own = self._privacy
        if isinstance(asked, NoPrivacySettings):
            if own is None:
                return None
            raise RefusedError(
                "not_private", f"this site trains under privacy.mode {' or '.join(own.modes)} alone"
            )
        if own is None:
            raise RefusedError(
                "no_privacy_here", f"this site is not set up for privacy.mode {asked.mode}"
            )
        if asked.mode not in own.modes:
            raise RefusedError(
                "mode_not_allowed",
                f"this site takes part in privacy.mode {' or '.join(own.modes)} alone, the request "
                f"asks for {asked.mode}; its own file decides, by privacy.modes",
            )
        return own
