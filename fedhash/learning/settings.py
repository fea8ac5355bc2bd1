"""Settings of the loss and of the training at a site.

The defaults are those that held up best over uneven sites: AdamW with control variates, an equal
number of local steps at every site and a cosine over the rounds.

A round file reaches a site from the coordinator. Its numbers are bounded, far outside of what
trains well, so that none of them leaves the numbers that tensors hold before a step is taken.

    >>> LearningSettings(local_steps=None, local_epochs=2, optimiser="sgd", learning_rate=0.05)
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from fedhash.configuration import Settings
from fedhash.models.relaxed import KAPPA

__all__ = ["LearningSettings", "LossSettings"]


class LossSettings(Settings):
    """Which loss, and its constants.

    Attributes:
        name: One of `fedhash.learning.losses`: anchor_margin, which all others but `temperature`
            belong to; logistic for heads of logits; or as a baseline contrastive, which takes its
            negatives from the batch.
        scale: s; None takes max(4, sqrt(2) log(K - 1)) for K findings.
        beta: Weight of the pull towards the target code.
        gamma: Weight of the quantisation term.
        kappa: Softening of the outputs' normalisation.
        margin: mu_0, the margin of every finding before a schedule moves it.
        temperature: Of the contrastive loss.
    """

    name: Literal["anchor_margin", "contrastive", "logistic"] = "anchor_margin"
    scale: float | None = Field(default=None, ge=1e-3, le=1e3)
    beta: float = Field(default=0.5, ge=0, le=1e3)
    gamma: float = Field(default=0.1, ge=0, le=1e3)
    kappa: float = Field(default=KAPPA, ge=1e-6, le=1e3)
    margin: float = Field(default=0.3, ge=0, le=2)  # cosines lie in [-1, 1]
    temperature: float = Field(default=0.1, ge=1e-3, le=1e3)


class LearningSettings(Settings):
    """How a site trains within one round.

    Attributes:
        optimiser: adamw or sgd.
        moments: Whether AdamW's moments stay at the site from round to round, or start at zero in
            each round. They are never sent (docs/adr/0005-moments-stay-at-the-site.md).
        learning_rate: In the first round; see `schedule`.
        weight_decay: Decoupled for AdamW, an L2 term for SGD.
        momentum: Of SGD; AdamW keeps its (0.9, 0.999).
        batch_patients: Patients a step; each gives one study. Under privacy, privacy.sampling_rate
            decides in its place.
        local_steps: Steps a round, the same at every site; or
        local_epochs: passes over the site's patients a round. Exactly one of the two.
        schedule: Of the learning rate over the rounds; constant within a round.
        proximal_weight: FedProx's mu (arXiv 1812.06127): pull towards the round's first model.
        control_variates: Correct the drift of uneven sites (SCAFFOLD, arXiv 1910.06378).
        gradient_clip_norm: Largest L2 norm of a step's gradient; None does not clip.
    """

    optimiser: Literal["adamw", "sgd"] = "adamw"
    moments: Literal["kept", "reset"] = "kept"
    learning_rate: float = Field(default=5e-4, ge=1e-9, le=1e3)
    weight_decay: float = Field(default=1e-4, ge=0, le=1e3)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    batch_patients: int = Field(default=32, ge=1, le=1_000_000)
    local_steps: int | None = Field(default=20, ge=1, le=1_000_000)
    local_epochs: int | None = Field(default=None, ge=1, le=1_000_000, validate_default=True)
    schedule: Literal["constant", "cosine"] = "cosine"
    proximal_weight: float = Field(default=0.0, ge=0, le=1e3)
    control_variates: bool = True
    gradient_clip_norm: float | None = Field(default=None, ge=1e-6, le=1e6)

    def under_drift(self, drift: float) -> LearningSettings:
        """The same with 1 + drift times the pull, and 1/(1 + drift) of the work, but some work."""

        def less(work: int | None) -> int | None:
            return None if work is None else max(1, int(work / (1 + drift)))

        changes = {
            "proximal_weight": self.proximal_weight * (1 + drift),
            "local_steps": less(self.local_steps),
            "local_epochs": less(self.local_epochs),
        }
        return self.model_copy(update=changes)

    # `info` is a ValidationInfo, a protocol that beartype cannot check; it lacks wrong values
    @field_validator("local_epochs")
    @classmethod
    def _one_amount_of_work(cls, epochs: int | None, info: Any) -> int | None:
        steps = info.data.get("local_steps")
        if "local_steps" in info.data and (steps is None) == (epochs is None):
            raise ValueError(
                f"local_steps is {steps} and local_epochs is {epochs}; "
                "give exactly one and set the other to null"
            )
        return epochs

    @field_validator("momentum")
    @classmethod
    def _momentum_of_sgd(cls, momentum: float, info: Any) -> float:
        if momentum and info.data.get("optimiser") == "adamw":
            raise ValueError("momentum belongs to sgd; remove it or set optimiser: sgd")
        return momentum
