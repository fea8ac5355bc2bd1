"""The losses by their names in the round file.

>>> loss = build_loss(settings.loss, anchors, prototypes=model.prototypes)
"""

from __future__ import annotations

import torch
from jaxtyping import Float

from fedhash.learning.loss import Loss
from fedhash.learning.losses.anchor_margin import AnchorMarginLoss
from fedhash.learning.losses.contrastive import ContrastiveLoss
from fedhash.learning.losses.csq import CsqLoss
from fedhash.learning.losses.dpsh import DpshLoss
from fedhash.learning.losses.hashnet import HashNetLoss
from fedhash.learning.losses.learned_prototypes import LearnedPrototypesLoss
from fedhash.learning.losses.logistic import LogisticLoss
from fedhash.learning.losses.orthohash import OrthoHashLoss
from fedhash.learning.losses.sadh import SadhAsymmetricLoss, SadhLoss
from fedhash.learning.losses.supcon import SupConLoss
from fedhash.learning.settings import LossSettings
from fedhash.models.anchors import Anchors

__all__ = ["LOSSES", "PRIVATE_LOSSES", "build_loss"]

LOSSES: dict[str, type[Loss]] = {
    "anchor_margin": AnchorMarginLoss,
    "logistic": LogisticLoss,
    "csq": CsqLoss,
    "orthohash": OrthoHashLoss,
    "sadh_asymmetric": SadhAsymmetricLoss,
    "contrastive": ContrastiveLoss,
    "dpsh": DpshLoss,
    "hashnet": HashNetLoss,
    "learned_prototypes": LearnedPrototypesLoss,
    "sadh": SadhLoss,
    "supcon": SupConLoss,
}


# what private rounds take: sums of patient terms that train layers alone
PRIVATE_LOSSES = tuple(
    name
    for name, loss in LOSSES.items()
    if loss.sum_of_patient_terms and loss is not LearnedPrototypesLoss
)


def build_loss(
    settings: LossSettings,
    anchors: Anchors,
    progress: float = 0.0,
    prototypes: Float[torch.Tensor, "K b"] | None = None,
) -> Loss:
    """The loss that the settings name, against the agreement's anchors.

    Args:
        settings: Name and constants.
        anchors: Of the agreement.
        progress: Share of the run's rounds that are over, for a loss that sharpens with it.
        prototypes: The model's as the round begins, for the loss that trains them.

    Raises:
        ModelError: The loss trains prototypes and there are none.
    """
    if settings.trains_prototypes:
        return LearnedPrototypesLoss(anchors, settings, prototypes)
    if settings.name == "hashnet":
        return HashNetLoss(anchors, settings, progress)
    return LOSSES[settings.name](anchors, settings)
