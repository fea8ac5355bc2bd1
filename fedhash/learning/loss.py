"""What a loss is: a row of numbers a batch, one a patient, small where the codes are right.

The losses themselves are in `fedhash.learning.losses`.

Shape suffixes: B batch, K findings, b bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int8

from fedhash.learning.settings import LossSettings
from fedhash.models.anchors import Anchors

__all__ = ["Loss", "Margins"]


@dataclass(frozen=True, eq=False)
class Margins:
    """What the coordinator sets for each finding, fixed within a round.

    Attributes:
        mu: Margin, in units of the cosine c.
        w: Weight of the finding's positives.
    """

    mu: Float32[np.ndarray, " K"]
    w: Float32[np.ndarray, " K"]

    @classmethod
    def constant(cls, findings: int, margin: float) -> Margins:
        """The same margin and weight 1 for all findings."""
        mu = np.full(findings, margin, dtype=np.float32)
        return cls(mu, np.ones(findings, dtype=np.float32))


@runtime_checkable  # the test suite checks types at run time
class Loss(Protocol):
    """What a site minimises.

    Attributes:
        sum_of_patient_terms: Whether a patient's loss depends on that patient alone. Without it, a
            clipped gradient bounds no patient's influence (see `fedhash.privacy.soundness`). What
            private rounds take stands in `fedhash.learning.losses.PRIVATE_LOSSES`.
    """

    sum_of_patient_terms: ClassVar[bool]

    def __init__(self, anchors: Anchors, settings: LossSettings) -> None: ...

    def __call__(
        self,
        outputs: Mapping[str, Float[torch.Tensor, "B b"]],
        present: Mapping[str, Bool[torch.Tensor, " B"]],
        labels: Int8[torch.Tensor, "B K"],
        margins: Margins,
    ) -> Float[torch.Tensor, " B"]:
        """A row a patient, one study each; a baseline's rows may depend on each other.

        Args:
            outputs: Modality to raw outputs u.
            present: Modality to whether the study has it; where not, it adds nothing.
            labels: 1 positive, 0 negative, -1 uncertain.
            margins: One mu and one w a finding.
        """
        ...
