"""OrthoHash: one cosine loss against orthogonal codes (Hoe et al., arXiv 2109.14449, section 3).

A baseline, and a sum of patient terms: a study is compared with published codes alone.

Shape suffixes: B batch, K findings, b bits.

With u a modality's raw output, v = u / sqrt(|u|^2 + kappa^2), c = A v / sqrt(b) its cosines to the
anchors, and P, N the study's positive and negative findings:

    z_k = s (c_k - mu_k) for k in P,  s c_k for k in N
    l = log sum_{k in P or N} exp(z_k) - 1/|P| sum_{k in P} z_k        0 without a positive finding

which is the cross-entropy to labels that sum to one; summed over the patient's modalities.

What differs from the paper: the orthogonal codes are the agreement's anchors, in place of a random
draw; no BatchNorm before the codes, which would mix patients; the cosine is softened by kappa, and
uncertain findings stand outside of the sum. s = 8 and the margin .2 are the authors' code's.

    >>> loss = OrthoHashLoss(anchors, LossSettings(name="orthohash"))
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int8

from fedhash.learning.loss import Margins
from fedhash.learning.settings import LossSettings
from fedhash.models.anchors import Anchors
from fedhash.models.relaxed import normalised

__all__ = ["OrthoHashLoss", "even_cross_entropy"]


class OrthoHashLoss:
    """A row a patient, of that patient alone; reads the margins and not their weights."""

    sum_of_patient_terms: ClassVar[bool] = True

    def __init__(self, anchors: Anchors, settings: LossSettings) -> None:
        self._scale = settings.value("scale")
        self._kappa = settings.value("kappa")
        self._matrix_Kb = torch.from_numpy(anchors.matrix).float()

    def __call__(
        self,
        outputs: Mapping[str, Float[torch.Tensor, "B b"]],
        present: Mapping[str, Bool[torch.Tensor, " B"]],
        labels: Int8[torch.Tensor, "B K"],
        margins: Margins,
    ) -> Float[torch.Tensor, " B"]:
        """See :class:`fedhash.learning.loss.Loss`."""
        positive_BK = labels == 1
        total = torch.zeros(len(labels))
        for modality, raw in outputs.items():
            cosines_BK = normalised(raw, self._kappa) @ self._matrix_Kb.T / sqrt(raw.shape[1])
            logits_BK = self._scale * (cosines_BK - positive_BK * torch.tensor(margins.mu))
            loss = even_cross_entropy(logits_BK, labels)
            total = total + torch.where(present[modality], loss, 0.0)
        return total


def even_cross_entropy(
    logits_BK: Float[torch.Tensor, "B K"], labels: Int8[torch.Tensor, "B K"]
) -> Float[torch.Tensor, " B"]:
    """Cross-entropy to labels that sum to one, evenly over the positive findings.

    Uncertain findings stand outside of it; 0 for a row without a positive finding.
    """
    positive_BK = labels == 1
    count_B = positive_BK.sum(dim=1)
    labelled_B = count_B > 0
    # rows without a positive finding keep all, so that their logarithm stays finite
    outside_BK = (labels == -1) & labelled_B[:, None]
    everything_B = torch.logsumexp(logits_BK.masked_fill(outside_BK, -torch.inf), dim=1)
    own_B = (positive_BK * logits_BK).sum(dim=1) / count_B.clamp(min=1)
    return torch.where(labelled_B, everything_B - own_B, 0.0)
