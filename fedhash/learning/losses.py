"""The losses by their names in the round file.

>>> loss = build_loss(settings.loss, anchors)
"""

from __future__ import annotations

from fedhash.learning.contrastive import ContrastiveLoss
from fedhash.learning.logistic import LogisticLoss
from fedhash.learning.loss import AnchorMarginLoss, Loss
from fedhash.learning.settings import LossSettings
from fedhash.models.anchors import Anchors

__all__ = ["LOSSES", "build_loss"]

LOSSES: dict[str, type[AnchorMarginLoss | ContrastiveLoss | LogisticLoss]] = {
    "anchor_margin": AnchorMarginLoss,
    "contrastive": ContrastiveLoss,
    "logistic": LogisticLoss,
}


def build_loss(settings: LossSettings, anchors: Anchors) -> Loss:
    """The loss that the settings name, against the agreement's anchors."""
    return LOSSES[settings.name](anchors, settings)
