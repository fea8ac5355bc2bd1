"""Supervised contrastive loss (Khosla et al., arXiv 2004.11362, equation 2, L_out).

A baseline. It takes its negatives from the batch, so no bound on a patient's influence follows from
clipping, and `fedhash.privacy` refuses it.

Shape suffixes: B batch, K findings, b bits, R rows of all modalities.

With v_i = u_i / sqrt(|u_i|^2 + kappa^2) of row i, P(i) its similar rows, A(i) its similar and
dissimilar ones (`fedhash.learning.losses.pairs`) and T the temperature:

    l_i = -1/|P(i)| sum_{p in P(i)} log(exp(<v_i, v_p>/T) / sum_{a in A(i)} exp(<v_i, v_a>/T))

0 without a similar row; summed over the patient's modalities.

What differs from the paper: a study's modalities take the place of two augmentations of an image;
labels are many, and one in common makes a positive; rows whose relation hangs on an uncertain
finding stand outside of A(i); the normalisation is softened by kappa. T = .1 is the paper's.

    >>> loss = SupConLoss(anchors, LossSettings(name="supcon"))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int8

from fedhash.learning.loss import Margins
from fedhash.learning.losses.pairs import Pairs
from fedhash.learning.settings import LossSettings
from fedhash.models.anchors import Anchors
from fedhash.models.relaxed import normalised

__all__ = ["SupConLoss"]


class SupConLoss:
    """A row a patient, each of which depends on the whole batch; reads no anchors, no margins."""

    sum_of_patient_terms: ClassVar[bool] = False

    def __init__(self, anchors: Anchors, settings: LossSettings) -> None:  # noqa: ARG002 - as all
        self._kappa = settings.value("kappa")
        self._temperature = settings.value("temperature")

    def __call__(
        self,
        outputs: Mapping[str, Float[torch.Tensor, "B b"]],
        present: Mapping[str, Bool[torch.Tensor, " B"]],
        labels: Int8[torch.Tensor, "B K"],
        margins: Margins,  # noqa: ARG002 - as all losses
    ) -> Float[torch.Tensor, " B"]:
        """See :class:`fedhash.learning.loss.Loss`."""
        pairs = Pairs.of(outputs, present, labels)
        relaxed_Rb = normalised(pairs.outputs, self._kappa)
        products_RR = relaxed_Rb @ relaxed_Rb.T / self._temperature
        alone_R = ~pairs.known.any(dim=1)
        # a row of zeros keeps rows without others finite; they have no similar row to count
        others_RR = products_RR.masked_fill(~pairs.known, -torch.inf)
        others_RR = others_RR.masked_fill(alone_R[:, None], 0.0)
        costs_RR = torch.logsumexp(others_RR, dim=1, keepdim=True) - products_RR
        similar_R = pairs.similar.sum(dim=1).clamp(min=1)
        return pairs.summed((pairs.similar * costs_RR).sum(dim=1) / similar_R)
