"""Learned prototypes, after FedProto (Tan et al., arXiv 2105.00243, section "Methodology").

A baseline for the published anchors: each finding has a point in the space of codes that is trained
with the towers and exchanged, where an anchor is agreed upon and never moves. FedCMR (Zong et al.,
SIGIR 2021, doi 10.1145/3404835.3462989) likewise learns one space for several modalities at sites
that exchange it.

Shape suffixes: B batch, K findings, b bits.

With u a modality's raw output, v = u / sqrt(|u|^2 + kappa^2), p_k the learned prototype of finding
k, q_k = p_k / sqrt(|p_k|^2 + kappa^2), r_k the q_k that the site received at the round's start, and
P, N the study's positive and negative findings:

    L_S = log sum_{k in P or N} exp(s <v, q_k>) - 1/|P| sum_{k in P} s <v, q_k>
    L_R = 1/|P| sum_{k in P} |v - r_k|^2
    L_Q = 1 - |v|_1 / sqrt(b)
    l   = L_S + beta L_R + gamma L_Q       L_S and L_R are 0 without a positive finding

summed over the patient's modalities. L_S moves towers and prototypes, L_R the towers alone.

What differs from FedProto: it sends the prototypes and never the model, so that models may differ;
here they are parameters of the model and averaged with it, so a secure sum carries them as it is,
and codes of all sites can be compared. Its prototype is the mean output of a site's patients with
the finding, and its mean over the sites goes by their numbers; here it is trained, and the mean
goes by the round's weighting: a site without the finding takes part, with what L_S made of it as a
negative. Its classifier is a layer of its own, here the cosines to the prototypes classify. L_R is
as in the authors' code, each study against the prototype of its class, on the unit ball and not
divided by b; beta = 1 is the code's. In a run's first round, where the code leaves L_R out, r is of
the seeded draw. Several findings count evenly; s is the anchor-margin loss's. L_Q and its gamma are
fedhash's: the codes are signs.

A patient's loss depends on that patient and on parameters alone. Private rounds refuse it
nevertheless: the prototypes stand in no layer whose gradient is formed, and clipped, patient by
patient (`fedhash.privacy.dp_sgd`).

    >>> model = build_model(settings, 64, seed=0, anchors=anchors)       # head: prototypes
    >>> loss = LearnedPrototypesLoss(
    ...     anchors, LossSettings(name="learned_prototypes"), model.prototypes
    ... )
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int8

from fedhash.errors import ModelError
from fedhash.learning.loss import Margins
from fedhash.learning.losses.anchor_margin import default_scale
from fedhash.learning.losses.orthohash import even_cross_entropy
from fedhash.learning.settings import LossSettings
from fedhash.models.anchors import Anchors
from fedhash.models.relaxed import normalised

__all__ = ["LearnedPrototypesLoss"]


class LearnedPrototypesLoss:
    """A row a patient, of that patient and the prototypes; reads no anchors and no margins.

    Args:
        prototypes: The model's, as the round begins: what they are now is what was received.

    Raises:
        ModelError: The model has no prototypes.
    """

    sum_of_patient_terms: ClassVar[bool] = True

    def __init__(
        self,
        anchors: Anchors,
        settings: LossSettings,
        prototypes: Float[torch.Tensor, "K b"] | None = None,
    ) -> None:
        if prototypes is None:
            raise ModelError(
                "the loss learned_prototypes trains the model's prototypes, and this model has "
                "none; set model.head: prototypes"
            )
        self._scale = settings.value("scale", default_scale(len(anchors.findings)))
        self._beta, self._gamma = settings.value("beta"), settings.value("gamma")
        self._kappa = settings.value("kappa")
        self._prototypes_Kb = prototypes
        self._received_Kb = normalised(prototypes.detach(), self._kappa)

    def __call__(
        self,
        outputs: Mapping[str, Float[torch.Tensor, "B b"]],
        present: Mapping[str, Bool[torch.Tensor, " B"]],
        labels: Int8[torch.Tensor, "B K"],
        margins: Margins,  # noqa: ARG002 - as all losses
    ) -> Float[torch.Tensor, " B"]:
        """See :class:`fedhash.learning.loss.Loss`."""
        positive_BK = labels == 1
        count_B = positive_BK.sum(dim=1).clamp(min=1)
        learned_Kb = normalised(self._prototypes_Kb, self._kappa)
        total = torch.zeros(len(labels))
        for modality, raw in outputs.items():
            relaxed_Bb = normalised(raw, self._kappa)
            classified_B = even_cross_entropy(self._scale * relaxed_Bb @ learned_Kb.T, labels)
            squares_BK = (
                relaxed_Bb.square().sum(dim=1, keepdim=True)
                - 2 * relaxed_Bb @ self._received_Kb.T
                + self._received_Kb.square().sum(dim=1)
            )
            pulled_B = (positive_BK * squares_BK).sum(dim=1) / count_B
            quantised_B = 1 - relaxed_Bb.abs().sum(dim=1) / sqrt(raw.shape[1])
            loss = classified_B + self._beta * pulled_B + self._gamma * quantised_B
            total = total + torch.where(present[modality], loss, 0.0)
        return total
