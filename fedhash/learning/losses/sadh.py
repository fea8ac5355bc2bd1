"""SADH: asymmetric and symmetric pairs with a margin-scalable constraint (Yu et al., 2012.03820).

Baselines. `sadh_asymmetric` compares a study with published codes alone and is a sum of patient
terms. `sadh` also compares the patients of a batch with each other, so no bound on a patient's
influence follows from clipping it, and `fedhash.privacy` refuses it.

Shape suffixes: B batch, K findings, b bits, R rows of all modalities.

With u a row's raw output, v = u / sqrt(|u|^2 + kappa^2), a(y) the semantic code of a label vector
y, and for two semantic codes the scalable margin Theta = max(0, <a, a'>/b), a pair of cosine c
costs

    d(c, Theta) = max(0, Theta - c) if similar,  max(0, c - Theta) if dissimilar
    asymmetric:    L_A = mean_k d(<v, A_k>/sqrt(b), Theta(a(y), A_k))
                   similar where finding k is positive, dissimilar where it is negative
    symmetric:     L_S = R times the mean over pairs of d(<v_i, v_j>, Theta(a(y_i), a(y_j)))
                   similar and dissimilar as in `fedhash.learning.losses.pairs`
    quantisation:  L_Q = 1/b |sqrt(b) v - sign(u)|^2
    sadh_asymmetric: L_A + gamma L_Q      sadh: L_A + beta L_S + gamma L_Q

L_A and L_Q are summed over the patient's modalities. beta = 1 and gamma = .01 are the authors'
code's weights.

What differs from the paper: its semantic network, trained on the labels of all data, is replaced by
the agreement's anchors, so a(y) is the anchors' target. Its dictionary holds a code of each set of
labels that occurs in the training data; here it holds the codes of the single findings, which no
patient had a part in. There are no semantic features, and so neither the terms between features nor
the classifier's. Uncertain findings make no pair. L_A and L_Q read normalised outputs, softened
by kappa, where the authors' code reads raw ones.

    >>> loss = SadhAsymmetricLoss(anchors, LossSettings(name="sadh_asymmetric"))
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int8

from fedhash.learning.loss import Margins
from fedhash.learning.losses.pairs import Pairs
from fedhash.learning.settings import LossSettings
from fedhash.models.anchors import Anchors
from fedhash.models.relaxed import normalised

__all__ = ["SadhAsymmetricLoss", "SadhLoss"]


class SadhAsymmetricLoss:
    """A row a patient, of that patient alone; reads no margins of the round."""

    sum_of_patient_terms: ClassVar[bool] = True

    def __init__(self, anchors: Anchors, settings: LossSettings) -> None:
        self._anchors = anchors
        self._gamma = settings.value("gamma")
        self._kappa = settings.value("kappa")
        self._matrix_Kb = torch.from_numpy(anchors.matrix).float()

    def __call__(
        self,
        outputs: Mapping[str, Float[torch.Tensor, "B b"]],
        present: Mapping[str, Bool[torch.Tensor, " B"]],
        labels: Int8[torch.Tensor, "B K"],
        margins: Margins,  # noqa: ARG002 - as all losses
    ) -> Float[torch.Tensor, " B"]:
        """See :class:`fedhash.learning.loss.Loss`."""
        theta_BK = torch.from_numpy(self._anchors.theta(labels.numpy()))
        total = torch.zeros(len(labels))
        for modality, raw in outputs.items():
            relaxed = normalised(raw, self._kappa)
            root = sqrt(raw.shape[1])
            cosines_BK = relaxed @ self._matrix_Kb.T / root
            costs_BK = _constraint(cosines_BK, theta_BK, labels == 1, labels == 0)
            asymmetric_B = costs_BK.sum(dim=1) / (labels != -1).sum(dim=1).clamp(min=1)
            quantisation_B = (root * relaxed - raw.sign()).square().mean(dim=1)
            loss = asymmetric_B + self._gamma * quantisation_B
            total = total + torch.where(present[modality], loss, 0.0)
        return total


class SadhLoss:
    """A row a patient, each of which depends on the whole batch; reads no margins of the round."""

    sum_of_patient_terms: ClassVar[bool] = False

    def __init__(self, anchors: Anchors, settings: LossSettings) -> None:
        self._asymmetric = SadhAsymmetricLoss(anchors, settings)
        self._anchors = anchors
        self._beta = settings.value("beta")
        self._kappa = settings.value("kappa")

    def __call__(
        self,
        outputs: Mapping[str, Float[torch.Tensor, "B b"]],
        present: Mapping[str, Bool[torch.Tensor, " B"]],
        labels: Int8[torch.Tensor, "B K"],
        margins: Margins,
    ) -> Float[torch.Tensor, " B"]:
        """See :class:`fedhash.learning.loss.Loss`."""
        pairs = Pairs.of(outputs, present, labels)
        relaxed_Rb = normalised(pairs.outputs, self._kappa)
        semantic_Bb = torch.from_numpy(self._anchors.targets(labels.numpy())).float()
        semantic_Rb = semantic_Bb[pairs.patient]
        theta_RR = torch.relu(semantic_Rb @ semantic_Rb.T / semantic_Rb.shape[1])
        cosines_RR = relaxed_Rb @ relaxed_Rb.T
        costs_RR = _constraint(cosines_RR, theta_RR, pairs.similar, pairs.dissimilar)
        asymmetric_B = self._asymmetric(outputs, present, labels, margins)
        return asymmetric_B + self._beta * pairs.per_patient(costs_RR)


def _constraint(
    cosines: Float[torch.Tensor, "n m"],
    theta: Float[torch.Tensor, "n m"],
    similar: Bool[torch.Tensor, "n m"],
    dissimilar: Bool[torch.Tensor, "n m"],
) -> Float[torch.Tensor, "n m"]:
    """The cost d of each pair; 0 for those that are neither."""
    gaps = theta - cosines
    return similar * torch.relu(gaps) + dissimilar * torch.relu(-gaps)
