"""The anchor-margin loss: each patient's own term against published anchors.

Shape suffixes: B batch, K findings, b bits, P positive labels in the batch.

With u a tower's raw output, v = u / sqrt(|u|^2 + kappa^2) and c = A v / sqrt(b) in [-1, 1]:

    l_A = 1/|P| sum_{p in P} w_p log(1 + sum_{n in N} exp(s g_pn))
          g_pn = c_n - c_p + mu_p max(0, theta_p - theta_n)
    l_C = 1 - <v, a(y)> / sqrt(b)          l_Q = 1 - |v|_1 / sqrt(b)
    l   = l_A + beta l_C + gamma l_Q       summed over the patient's modalities

P holds the positive findings, N the negative ones, uncertain ones stand in neither. theta comes
from a(y) (see `fedhash.models.anchors`), so near findings get smaller margins.

1. A patient's loss depends on that patient alone: no in-batch negatives, no batch statistics.
   Otherwise clipping a patient's gradient would not bound the patient's influence.
2. |dl/du| <= (2 s max(w) + beta + gamma) / sqrt(|u|^2 + kappa^2) in each modality.

    >>> loss = AnchorMarginLoss(anchors, LossSettings())
    >>> per_patient = loss({"image": outputs}, {"image": present}, labels, margins)   # [B]
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log, sqrt
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int8

from fedhash.errors import ModelError
from fedhash.learning.loss import Margins
from fedhash.learning.settings import LossSettings
from fedhash.models.anchors import Anchors
from fedhash.models.relaxed import normalised

__all__ = ["AnchorMarginLoss", "default_scale", "positives_before_negatives"]

_SMALLEST_SCALE = 4.0  # below, the loss of few findings is nearly linear and never lets go


def default_scale(findings: int) -> float:
    """The scale s = sqrt(2) log(K - 1), at least 4 (AdaCos, arXiv 1905.00292)."""
    return max(_SMALLEST_SCALE, sqrt(2) * log(findings - 1))


class AnchorMarginLoss:
    """Per-patient losses over all modalities.

    Attributes:
        sum_of_patient_terms: See :class:`fedhash.learning.loss.Loss`.
        anchors: A and t.
        scale: s as used.
    """

    sum_of_patient_terms: ClassVar[bool] = True

    def __init__(self, anchors: Anchors, settings: LossSettings) -> None:
        self.anchors = anchors
        self.scale = settings.value("scale", default_scale(len(anchors.findings)))
        self._beta, self._gamma = settings.value("beta"), settings.value("gamma")
        self._kappa = settings.value("kappa")
        self._matrix = torch.from_numpy(anchors.matrix).float()

    def __call__(
        self,
        outputs: Mapping[str, Float[torch.Tensor, "B b"]],
        present: Mapping[str, Bool[torch.Tensor, " B"]],
        labels: Int8[torch.Tensor, "B K"],
        margins: Margins,
    ) -> Float[torch.Tensor, " B"]:
        """Losses of B patients, one study each.

        Args:
            outputs: Modality to raw outputs u.
            present: Modality to whether the study has it; where not, it adds nothing.
            labels: 1 positive, 0 negative, -1 uncertain. A study without a positive finding has
                l_A = 0 and the tie vector for a target.
            margins: One mu and one w a finding.

        Raises:
            ModelError: The margins or the labels have another number of findings.
        """
        if margins.mu.shape != (len(self.anchors.findings),):
            raise ModelError(
                f"{len(margins.mu)} margins were given for {len(self.anchors.findings)} findings; "
                "give one a finding"
            )
        targets = self.anchors.targets(labels.numpy())
        theta = torch.from_numpy(self.anchors.closeness(targets))
        total = torch.zeros(len(labels))
        for modality, raw in outputs.items():
            relaxed = normalised(raw, self._kappa)
            cosines = relaxed @ self._matrix.T / sqrt(relaxed.shape[1])
            loss = positives_before_negatives(cosines, labels, theta, margins, self.scale)
            loss = loss + self._code_terms(relaxed, torch.from_numpy(targets))
            total = total + torch.where(present[modality], loss, 0.0)
        return total

    def _code_terms(
        self, relaxed: Float[torch.Tensor, "B b"], targets: Int8[torch.Tensor, "B b"]
    ) -> Float[torch.Tensor, " B"]:
        """Beta l_C + gamma l_Q."""
        root = sqrt(relaxed.shape[1])
        agreement = 1 - (relaxed * targets).sum(dim=1) / root
        quantisation = 1 - relaxed.abs().sum(dim=1) / root
        return self._beta * agreement + self._gamma * quantisation


def positives_before_negatives(
    scores: Float[torch.Tensor, "B K"],
    labels: Int8[torch.Tensor, "B K"],
    theta: Float[torch.Tensor, "B K"],
    margins: Margins,
    scale: float,
) -> Float[torch.Tensor, " B"]:
    """l_A of scores c, a row a study; 0 without a positive finding.

    Only rows of positive labels are formed: [P, K] in place of [B, K, K].
    """
    study, positive = torch.nonzero(labels == 1, as_tuple=True)
    mu = torch.tensor(margins.mu)[positive, None]
    margin = mu * torch.relu(theta[study, positive][:, None] - theta[study])
    gaps = scale * (scores[study] - scores[study, positive][:, None] + margin)
    gaps = gaps.masked_fill(labels[study] != 0, -torch.inf)
    # The column of zeros is the 1 in log(1 + sum), and keeps rows without negatives finite.
    gaps = torch.cat([torch.zeros(len(gaps), 1), gaps], dim=1)
    terms = torch.tensor(margins.w)[positive] * torch.logsumexp(gaps, dim=1)
    sums = torch.zeros(len(labels)).index_add(0, study, terms)
    return sums / (labels == 1).sum(dim=1).clamp(min=1)
