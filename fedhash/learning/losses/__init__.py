"""The losses by their names in the round file.

>>> loss = build_loss(settings.loss, anchors)
"""

from __future__ import annotations

from fedhash.learning.loss import Loss
from fedhash.learning.losses.anchor_margin import AnchorMarginLoss
from fedhash.learning.losses.contrastive import ContrastiveLoss
from fedhash.learning.losses.logistic import LogisticLoss
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
