"""The logistic loss on the logits of the findings: convex in a linear head, as privacy likes it.

Shape suffixes: B batch, K findings, b bits.

With c = A u / b, which are a logits head's own logits (`fedhash.models.logits_head`), P the
positive and N the negative findings of a study:

    l = (1/|P|) sum_{p in P} w_p log(1 + sum_{n in N} exp(c_n - c_p))

That is cross-entropy where a study has one finding. It is the anchor-margin loss
(`fedhash.learning.losses.anchor_margin`) without its normalisation, margins and pull towards a
code: the length of u stays free to say how sure the model is, and there is no margin that a longer
u would not meet.

    >>> loss = LogisticLoss(anchors, LossSettings(name="logistic"))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int8

from fedhash.learning.loss import Margins
from fedhash.learning.losses.anchor_margin import positives_before_negatives
from fedhash.learning.settings import LossSettings
from fedhash.models.anchors import Anchors

__all__ = ["LogisticLoss"]


class LogisticLoss:
    """A row a patient, of that patient alone; reads the margins' weights and not the margins."""

    sum_of_patient_terms: ClassVar[bool] = True

    def __init__(self, anchors: Anchors, settings: LossSettings) -> None:  # noqa: ARG002 - as all
        self._matrix_Kb = torch.from_numpy(anchors.matrix).float()

    def __call__(
        self,
        outputs: Mapping[str, Float[torch.Tensor, "B b"]],
        present: Mapping[str, Bool[torch.Tensor, " B"]],
        labels: Int8[torch.Tensor, "B K"],
        margins: Margins,
    ) -> Float[torch.Tensor, " B"]:
        """See :class:`fedhash.learning.loss.Loss`."""
        without_mu = Margins(np.zeros_like(margins.mu), margins.w)
        nowhere = torch.zeros(labels.shape)
        total = torch.zeros(len(labels))
        for modality, raw in outputs.items():
            logits = raw @ self._matrix_Kb.T / raw.shape[1]
            loss = positives_before_negatives(logits, labels, nowhere, without_mu, scale=1.0)
            total = total + torch.where(present[modality], loss, 0.0)
        return total
