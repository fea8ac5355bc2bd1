"""Settings of the loss and of the training at a site.

The defaults are those that held up best over uneven sites: AdamW with control variates, an equal
number of local steps at every site and a cosine over the rounds.

A round file reaches a site from the coordinator. Its numbers are bounded, far outside of what
trains well, so that none of them leaves the numbers that tensors hold before a step is taken.

    >>> LearningSettings(local_steps=None, local_epochs=2, optimiser="sgd", learning_rate=0.05)
"""

from __future__ import annotations

from math import nan
from typing import Any, Literal

from pydantic import Field, field_validator

from fedhash.configuration import Settings
from fedhash.models.relaxed import KAPPA

__all__ = ["LearningSettings", "LossName", "LossSettings"]


LossName = Literal[
    "anchor_margin",
    "contrastive",
    "csq",
    "dpsh",
    "hashnet",
    "learned_prototypes",
    "logistic",
    "orthohash",
    "sadh",
    "sadh_asymmetric",
    "supcon",
]

# What each loss reads, with the value where the file has none: anchor_margin's held up best here,
# a baseline's is its paper's or its authors' code's, as the loss's docstring says. None: the loss
# derives it from the number of findings or of bits.
_READ: dict[LossName, dict[str, float | None]] = {
    "anchor_margin": {"scale": None, "beta": 0.5, "gamma": 0.1, "kappa": KAPPA, "margin": 0.3},
    "contrastive": {"kappa": KAPPA, "temperature": 0.1},
    "csq": {"gamma": 0.05},
    "dpsh": {"gamma": 0.1},
    "hashnet": {"scale": None},
    "learned_prototypes": {"scale": None, "beta": 1.0, "gamma": 0.1, "kappa": KAPPA},
    "logistic": {},
    "orthohash": {"scale": 8.0, "kappa": KAPPA, "margin": 0.2},
    "sadh": {"beta": 1.0, "gamma": 0.01, "kappa": KAPPA},
    "sadh_asymmetric": {"gamma": 0.01, "kappa": KAPPA},
    "supcon": {"kappa": KAPPA, "temperature": 0.1},
}


class LossSettings(Settings):
    """Which loss, and its constants; one that the loss does not read is refused.

    Where a constant is null the loss has a default of its own.

    Attributes:
        name: One of `fedhash.learning.losses`. anchor_margin is what fedhash is for, logistic is
            for heads of logits, the others are baselines.
        scale: Of the cosines, s (anchor_margin and learned_prototypes: max(4, sqrt(2) log(K - 1))
            for K findings; orthohash: 8); of the inner products, alpha (hashnet: 10/b for b bits).
        beta: Weight of the pull towards the target code (anchor_margin: .5); towards the received
            prototypes (learned_prototypes: 1); of the pairs within the batch (sadh: 1).
        gamma: Weight of the quantisation term (anchor_margin, dpsh and learned_prototypes: .1; sadh
            and sadh_asymmetric: .01; csq: .05).
        kappa: Softening of the outputs' normalisation (anchor_margin, contrastive,
            learned_prototypes, orthohash, sadh, sadh_asymmetric and supcon: .1).
        margin: mu_0, the margin of every finding (anchor_margin: .3 before a schedule moves it;
            orthohash: .2).
        temperature: T (contrastive and supcon: .1).
    """

    name: LossName = "anchor_margin"
    scale: float | None = Field(default=None, ge=1e-3, le=1e3)
    beta: float | None = Field(default=None, ge=0, le=1e3)
    gamma: float | None = Field(default=None, ge=0, le=1e3)
    kappa: float | None = Field(default=None, ge=1e-6, le=1e3)
    margin: float | None = Field(default=None, ge=0, le=2)  # cosines lie in [-1, 1]
    temperature: float | None = Field(default=None, ge=1e-3, le=1e3)

    def value(self, constant: str, derived: float = nan) -> float:
        """What the loss takes for a constant that it reads.

        Args:
            constant: One of the fields.
            derived: Taken where neither the file nor the loss has a number.
        """
        own = getattr(self, constant)
        number = _READ[self.name][constant] if own is None else own
        return float(derived if number is None else number)

    @property
    def has_margins(self) -> bool:
        """Whether the loss reads the margins of a round."""
        return "margin" in _READ[self.name]

    @property
    def trains_prototypes(self) -> bool:
        """Whether the loss trains prototypes, which the model then must have."""
        return self.name == "learned_prototypes"

    @property
    def pairs_modalities(self) -> bool:
        """Whether the loss compares a patient's modalities, of which the model then has several."""
        return self.name == "contrastive"

    # `info` is a ValidationInfo, as in LearningSettings
    @field_validator("scale", "beta", "gamma", "kappa", "margin", "temperature")
    @classmethod
    def _only_what_is_read(cls, number: float | None, info: Any) -> float | None:
        name, constant = info.data.get("name"), info.field_name
        if number is not None and name in _READ and constant not in _READ[name]:
            read = ", ".join(_READ[name]) or "no constants"
            raise ValueError(
                f"{constant} is {number:g}, and the loss {name} does not read it; set {constant}: "
                f"null, {name} reads {read}"
            )
        return number


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
        normalisation_layers: own: scale and shift of GroupNorm and LayerNorm stay at their site
            (FedBN, arXiv 2102.07623; `fedhash.learning.own_layers`). For studies: no release can
            be made of it.
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
    normalisation_layers: Literal["averaged", "own"] = "averaged"
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
