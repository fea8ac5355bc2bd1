"""The losses by their names in the round file.

>>> loss = build_loss(settings.loss, anchors)
"""

from __future__ import annotations

from fedhash.learning.loss import Loss
from fedhash.learning.losses.anchor_margin import AnchorMarginLoss
from fedhash.learning.losses.contrastive import ContrastiveLoss
from fedhash.learning.losses.csq import CsqLoss
from fedhash.learning.losses.dpsh import DpshLoss
from fedhash.learning.losses.hashnet import HashNetLoss
from fedhash.learning.losses.logistic import LogisticLoss
from fedhash.learning.losses.orthohash import OrthoHashLoss
from fedhash.learning.losses.sadh import SadhAsymmetricLoss, SadhLoss
from fedhash.learning.losses.supcon import SupConLoss
from fedhash.learning.settings import LossSettings
from fedhash.models.anchors import Anchors

__all__ = ["LOSSES", "build_loss"]

LOSSES: dict[str, type[Loss]] = {
    "anchor_margin": AnchorMarginLoss,
    "logistic": LogisticLoss,
    "csq": CsqLoss,
    "orthohash": OrthoHashLoss,
    "sadh_asymmetric": SadhAsymmetricLoss,
    "contrastive": ContrastiveLoss,
    "dpsh": DpshLoss,
    "hashnet": HashNetLoss,
    "sadh": SadhLoss,
    "supcon": SupConLoss,
}


def build_loss(settings: LossSettings, anchors: Anchors, progress: float = 0.0) -> Loss:
    """The loss that the settings name, against the agreement's anchors.

    Args:
        settings: Name and constants.
        anchors: Of the agreement.
        progress: Share of the run's rounds that are over, for a loss that sharpens with it.
    """
    if settings.name == "hashnet":
        return HashNetLoss(anchors, settings, progress)
    return LOSSES[settings.name](anchors, settings)
