"""A site's data and model behind one round of training.

1. Only a validated request trains: limits are the site agent's business (fedhash.rounds.site).
2. Each round draws from its own stream (seed, "training", run, site, round): a round that is asked
   for again gives the same reply, the same round of another run does not, and no site's draws
   depend on another's.
3. A round takes at most the agreement's `largest_local_steps`.

    >>> trainer = SiteTrainer("hospital-a", agreement, settings.model, prepared, seed=7)
    >>> agent = SiteAgent("hospital-a", agreement, trainer, MemorySiteState(), aggregation)
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedhash.agreement import Agreement
from fedhash.learning.local_training import LocalResult, train_locally
from fedhash.learning.loss import AnchorMarginLoss
from fedhash.models.anchors import Anchors
from fedhash.models.hash_model import build_model
from fedhash.models.layout import Layout
from fedhash.models.prepared import PreparedStudies
from fedhash.models.settings import ModelSettings
from fedhash.randomness import torch_stream
from fedhash.rounds.training_messages import TrainRequest

__all__ = ["SiteTrainer"]


class SiteTrainer:
    """Trains on one site's studies.

    Attributes:
        model_settings: The model that is trained here.
        layout_digest: `Layout.digest()` of it.
        model_size: Its number of parameters d.
        patients: Number of patients that train.
    """

    def __init__(
        self,
        site: str,
        agreement: Agreement,
        model_settings: ModelSettings,
        studies: PreparedStudies,
        seed: int,
    ) -> None:
        self.model_settings = model_settings
        self._site = site
        self._seed = seed
        self._studies = studies
        self._most_steps = agreement.largest_local_steps
        self._anchors = Anchors.build(agreement)
        # any seed: each round starts from the model that the request brings
        self._model = build_model(model_settings, agreement.code_bits, seed=0)
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
            DataError: The site has no study that can train.
            ModelError: The training left the finite numbers, or what is carried does not fit.
        """
        plan, settings = request.plan, request.plan.settings
        self._layout.load(self._model, request.model)
        return train_locally(
            self._model,
            self._studies,
            AnchorMarginLoss(self._anchors, settings.loss),
            settings.learning,
            margins=request.margins,
            round_number=request.round_number,
            rounds_total=settings.rounds,
            shared_control=request.control,
            carried=carried,
            most_steps=self._most_steps,
            generator=torch_stream(
                self._seed, "training", plan.run_id, self._site, request.round_number
            ),
        )
