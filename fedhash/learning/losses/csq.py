"""CSQ: central similarity quantisation (Yuan et al., arXiv 1908.00347, section 3).

A baseline, and a sum of patient terms: a study is compared with its own centre alone.

Shape suffixes: B batch, K findings, b bits.

With u a modality's raw output, a(y) in {-1, +1}^b the study's centre (`fedhash.models.anchors`) and
d a bit:

    h = tanh(u)      P(bit d is 1) = (1 + h_d)/2
    L_C = -1/b sum_d log P(bit d is a_d)       0 without a positive finding
    L_Q = 1/b sum_d log cosh(|h_d| - 1)
    l = L_C + gamma L_Q                        summed over the patient's modalities

What differs from the paper: centres are the agreement's anchors; a study of several findings gets
their majority, as in the paper, but ties go by the published tie vector and not by chance at each
site, and ancestors count where the agreement has them. L_Q is a mean over the bits and gamma .05,
as in the authors' code; the term over pairs that it adds to the paper's is left out. Uncertain
findings have no part in the centre.

    >>> loss = CsqLoss(anchors, LossSettings(name="csq"))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int8
from torch.nn.functional import softplus

from fedhash.learning.loss import Margins
from fedhash.learning.settings import LossSettings
from fedhash.models.anchors import Anchors

__all__ = ["CsqLoss"]


class CsqLoss:
    """A row a patient, of that patient alone; reads no margins."""

    sum_of_patient_terms: ClassVar[bool] = True

    def __init__(self, anchors: Anchors, settings: LossSettings) -> None:
        self._anchors = anchors
        self._gamma = settings.value("gamma")

    def __call__(
        self,
        outputs: Mapping[str, Float[torch.Tensor, "B b"]],
        present: Mapping[str, Bool[torch.Tensor, " B"]],
        labels: Int8[torch.Tensor, "B K"],
        margins: Margins,  # noqa: ARG002 - as all losses
    ) -> Float[torch.Tensor, " B"]:
        """See :class:`fedhash.learning.loss.Loss`."""
        centres_Bb = torch.from_numpy(self._anchors.targets(labels.numpy()))
        has_centre_B = (labels == 1).any(dim=1)
        total = torch.zeros(len(labels))
        for modality, raw in outputs.items():
            # (1 + tanh(u))/2 is the logistic function of 2 u, whose logarithm softplus does safely
            off_centre_B = softplus(-2 * centres_Bb * raw).mean(dim=1)
            quantisation_B = torch.log(torch.cosh(raw.tanh().abs() - 1)).mean(dim=1)
            loss = has_centre_B * off_centre_B + self._gamma * quantisation_B
            total = total + torch.where(present[modality], loss, 0.0)
        return total
